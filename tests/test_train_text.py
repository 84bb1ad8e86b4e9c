"""Language models of several architectures, as folders: tokens in, one vector per token out."""

import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tests.language_models import CHINESE, LAYERS, NAMES, save_language_model
from train.model.language_model import LanguageModel, Tokens, load_tokenizer, tokenize
from train.model.layers import masked_mean

TEXTS = ["good film", "the film was so so bad", "it was a good good film", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a small model of an architecture; each is created once."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = save_language_model(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


def texts_of(name):
    return ["我很喜欢", "我不喜欢这部电影", ""] if name == "chinese-bert" else TEXTS


def whole_batch(name, folder, **more):
    tokenized = tokenize(load_tokenizer(folder(name)), texts_of(name), 32, **more)
    return tokenized.batch(torch.arange(len(tokenized.lengths)))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_vector_per_token_whatever_the_padding(name, folder):
    model = LanguageModel(folder(name)).eval()
    tokenized = tokenize(load_tokenizer(folder(name)), texts_of(name), 32)
    tokens = tokenized.batch(torch.arange(len(texts_of(name))))
    hidden_BLd, mask_BL = model(tokens)
    assert hidden_BLd.shape == (*tokens.ids.shape, model.width)
    assert mask_BL.sum(1).tolist() == tokenized.lengths.tolist()
    assert tokenized.lengths.min() >= 1  # of the empty text
    assert hidden_BLd.isfinite().all()
    for row in range(len(tokens.ids)):
        alone_1Ld, alone_mask_1L = model(tokenized.batch(torch.tensor([row])))
        assert alone_mask_1L.all()
        torch.testing.assert_close(hidden_BLd[row][mask_BL[row]], alone_1Ld[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            masked_mean(hidden_BLd, mask_BL)[row], alone_1Ld[0].mean(0), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_what_the_models_own_tokenizer_gives(name, folder):
    tokenizer = load_tokenizer(folder(name))
    texts = [text for text in texts_of(name) if text]
    theirs = tokenizer(texts, padding=True, return_tensors="pt")
    ours = tokenize(tokenizer, texts, 32).batch(torch.arange(len(texts)))
    assert torch.equal(ours.ids, theirs["input_ids"])
    assert torch.equal(ours.mask, theirs["attention_mask"].bool())
    if "token_type_ids" in theirs:
        assert ours.types is not None
        assert torch.equal(ours.types, theirs["token_type_ids"])


def test_xlnet_pads_in_front_and_has_its_segments(folder):
    tokens = whole_batch("xlnet", folder)
    tokenizer = load_tokenizer(folder("xlnet"))
    assert tokens.mask[0].tolist() == [False] * (tokens.mask.shape[1] - 4) + [True] * 4
    assert tokens.types[0, -4:].tolist() == [0, 0, 0, 2]  # two words, separator, class
    assert (tokens.types[~tokens.mask] == 3).all()
    assert (tokens.ids[:, -1] == tokenizer.cls_token_id).all()


def test_segments_reach_only_models_that_have_them(folder):
    for name, has in {"bert": True, "xlnet": True, "deberta": False, "gpt2": False}.items():
        model = LanguageModel(folder(name)).eval()
        tokens = whole_batch(name, folder)
        one_segment = torch.zeros_like(tokens.ids)
        two_segments = one_segment.index_fill(1, torch.tensor([3, 4]), 1)
        with torch.no_grad():
            one, two = (
                model(Tokens(tokens.ids, tokens.mask, types))[0][1]
                for types in (one_segment, two_segments)
            )
        same = torch.allclose(one, two)
        assert same != has, name


def test_every_chinese_character_is_a_token(folder):
    tokenizer = load_tokenizer(folder("chinese-bert"))
    tokenized = tokenize(tokenizer, ["我不喜欢这部电影"], 32)
    tokens = tokenizer.convert_ids_to_tokens(tokenized.ids.tolist())
    assert tokens == ["[CLS]", *"我不喜欢这部电影", "[SEP]"]
    assert set("我不喜欢这部电影") <= set(CHINESE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trainable", ["none", "all", 1])
def test_only_what_is_trainable_gets_a_gradient(name, trainable, folder):
    model = LanguageModel(folder(name), trainable).train()
    assert model.encoder.training == (trainable != "none")
    hidden_BLd, mask_BL = model(whole_batch(name, folder))
    if trainable == "none":
        assert not hidden_BLd.requires_grad
        assert not any(p.requires_grad for p in model.parameters())
        return
    hidden_BLd[mask_BL].square().sum().backward()
    learns = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learns == {n for n, p in model.named_parameters() if p.requires_grad}
    last = f".{LAYERS - 1}."  # layers count from 0
    if trainable == 1:
        assert learns
        assert all(last in n for n in learns)
    else:
        assert any("embedding" in n or "wte" in n or "shared" in n or "embed" in n for n in learns)
        assert any(".0." in n for n in learns)
        assert any(last in n for n in learns)


def test_more_layers_than_there_are(folder):
    with pytest.raises(ValueError, match=f"the language model has {LAYERS} layers"):
        LanguageModel(folder("xlnet"), LAYERS + 1)


def test_more_tokens_than_the_model_takes(folder):
    tokenizer = load_tokenizer(folder("roberta"))
    tokenizer.model_max_length = 64
    with pytest.raises(ValueError, match=r"max_tokens=65: the language model supports at most 64"):
        tokenize(tokenizer, TEXTS, 65)


def test_a_folder_without_a_model_is_one_clear_error(tmp_path):
    for load in (load_tokenizer, LanguageModel):
        with pytest.raises(ValueError, match="cannot load the language model"):
            load(str(tmp_path))


@pytest.mark.parametrize("path", ["models/none", "./none", "/none", "../a/none", "a/b/c"])
def test_a_path_to_nothing_is_not_asked_of_the_hub(path):
    for load in (load_tokenizer, LanguageModel):
        with pytest.raises(ValueError, match=f"^{path}: no such folder; text.model is a folder"):
            load(path)


LOADS = """
import sys
from train.model.language_model import LanguageModel, load_tokenizer
for name in sys.argv[1:]:
    try:
        print(len(load_tokenizer(name)), LanguageModel(name).width)
    except ValueError as error:
        print(error)
"""


@pytest.fixture
def hub(folder, tmp_path):
    """A server with one model, ``org/tiny``, and a function that loads models from it."""
    root = Path(folder("bert"))

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            start = "/org/tiny/resolve/main/"
            path = root / self.path.removeprefix(start)
            found = self.path.startswith(start) and path.is_file()
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            if found:
                self.send_header("ETag", f'"{path.name}"')
            elif self.path.startswith("/org/tiny/"):
                self.send_header("X-Error-Code", "EntryNotFound")
            content = path.read_bytes() if found else b""
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever).start()

    def load(*names):
        address = f"http://127.0.0.1:{server.server_port}"
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", LOADS, *names]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.splitlines(), done.stderr

    yield server, load
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_downloaded_and_without_a_network_taken_from_the_cache(hub, folder):
    server, load = hub
    (tiny, none), _ = load("org/tiny", "org/none")
    assert tiny == " ".join(map(str, [len(load_tokenizer(folder("bert"))), 16]))
    assert "cannot load the language model 'org/none'" in none
    server.shutdown()
    server.server_close()
    (again, other), complaints = load("org/tiny", "org/other")
    assert again == tiny
    assert "cannot load the language model 'org/other'" in other
    assert "Retrying" not in complaints  # a minute of them


def test_a_folder_without_a_tokenizer_is_one_clear_error(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(folder("bert"), name), tmp_path)
    with pytest.raises(ValueError, match="has no vocabulary: copy its tokenizer's files"):
        load_tokenizer(str(tmp_path))
