"""Invariances of the model: order, padding, other utterances of the batch, layout of the frames."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.language_models import save_language_model
from tests.small_model import KINDS, N, batch_of, make
from train.methods.semanticmac import SUBTASKS

BATCHES = st.lists(st.integers(0, N - 1), min_size=1, max_size=5, unique=True).map(torch.tensor)
ABSENT = st.sets(st.integers(0, N - 1), max_size=N)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One model of each kind of task with its labels, and pseudo labels that differ from them."""
    folder = save_language_model("bert", tmp_path_factory.mktemp("bert"))
    made = {kind: make(folder, "sccl.alpha=0.3", "sccl.beta=0.7", task=kind) for kind in KINDS}
    for method, _ in made.values():
        for name in ("missing", "frame_embedding", "tokens"):  # large enough to be seen
            method.audio.get_parameter(name).data *= 20
        method.pseudo.labels.uniform_(generator=torch.Generator().manual_seed(4))
        method.double()
    return made


def terms_of(method, batch):
    """The terms of the training loss, without dropout."""
    outputs = method.eval()(batch)
    return method.train().loss(outputs, batch)


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(KINDS), index=BATCHES, extra=st.integers(0, 6), absent=ABSENT)
@torch.no_grad()
def test_an_utterance_has_the_same_outputs_alone_and_in_any_batch(
    models, kind, index, extra, absent
):
    """For any other utterances in the batch, and any padding."""
    method, labels = models[kind]
    method.eval()
    together = method(batch_of(labels, index, extra, absent))
    for row, i in enumerate(index):
        alone = method(batch_of(labels, i[None], absent=absent))
        for k in SUBTASKS:
            torch.testing.assert_close(together.predictions[k][row], alone.predictions[k][0])
            torch.testing.assert_close(together.features[k][row], alone.features[k][0])


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(KINDS), index=BATCHES, extra=st.integers(0, 6), absent=ABSENT)
@torch.no_grad()
def test_only_the_contrast_among_utterances_depends_on_the_batch(
    models, kind, index, extra, absent
):
    method, labels = models[kind]
    together = terms_of(method, batch_of(labels, index, extra, absent))
    singles = [terms_of(method, batch_of(labels, i[None], absent=absent)) for i in index]
    for name in (*(f"task_{k}" for k in SUBTASKS), "intra"):
        mean = torch.stack([single[name] for single in singles]).mean()
        torch.testing.assert_close(together[name], mean, rtol=1e-5, atol=1e-6)
    assert all(single["inter"] == 0 for single in singles)
    turned = terms_of(method, batch_of(labels, index.flip(0), extra, absent))
    for name, term in together.items():
        torch.testing.assert_close(turned[name], term, rtol=1e-5, atol=1e-6)


def padded_perceiver(perceiver, x_BTd, mask_BT):
    """Equations (3) and (4) on padded frames, with PyTorch's own multi-head attention."""
    e_BTD = perceiver.project(x_BTd) + perceiver.frame_embedding[: x_BTd.shape[1]]
    absent_B = ~mask_BT.any(1)
    e_BTD[absent_B, 0] = perceiver.missing
    mask_BT = mask_BT | (absent_B[:, None] & (torch.arange(x_BTd.shape[1]) == 0))
    z_BND = perceiver.tokens.expand(len(x_BTd), -1, -1)
    for layer in perceiver.layers:
        own, keys_BTD = layer.attention, layer.norm_frames(e_BTD)
        heard_NBD, _ = F.multi_head_attention_forward(
            layer.norm_tokens(z_BND).transpose(0, 1),
            *(keys_BTD.transpose(0, 1),) * 2,
            z_BND.shape[2],
            own.heads,
            torch.cat([own.query.weight, own.key_value.weight]),
            torch.cat([own.query.bias, own.key_value.bias]),
            *(None, None, False, 0.0),
            own.out.weight,
            own.out.bias,
            key_padding_mask=~mask_BT,
        )
        z_BND = z_BND + heard_NBD.transpose(0, 1)
        z_BND = z_BND + layer.ffn(layer.norm_ffn(z_BND))
    return z_BND


@settings(max_examples=10, deadline=None)
@given(index=BATCHES, extra=st.integers(0, 4), absent=ABSENT)
@torch.no_grad()
def test_packed_frames_give_what_padded_frames_give(models, index, extra, absent):
    method, labels = models["regression"]
    batch = batch_of(labels, index, absent=absent)
    packed = method.eval()(batch)

    def padded(perceiver, given, _):
        x_BTd, mask_BT = given[0].padded()
        x_BTd = F.pad(x_BTd.double(), (0, 0, 0, extra))
        mask_BT = F.pad(mask_BT, (0, extra))
        x_BTd[~mask_BT] = 9.0  # the values of the padding do not matter
        return padded_perceiver(perceiver, x_BTd, mask_BT)

    hooks = [u.register_forward_hook(padded) for u in (method.audio, method.vision)]
    again = method(batch)
    for hook in hooks:
        hook.remove()
    for k in SUBTASKS:
        torch.testing.assert_close(packed.predictions[k], again.predictions[k])
