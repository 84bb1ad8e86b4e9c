"""Untrusted pickles are loaded as data and never run."""

import _thread
import contextlib
import os
import pickle
import pickletools
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifests.unpickle import load_pickle
from tests.foreign import (
    MARK,
    Calls,
    write_pickle,
)

GADGETS = {
    "reduce": lambda p: pickle.dumps(Calls(os.system, f"touch {p}"), 4),
    "global": lambda p: b"cposix\nsystem\n(S'touch %s'\ntR." % str(p).encode(),
    "inst": lambda p: b"(S'touch %s'\niposix\nsystem\n." % str(p).encode(),
    "stack_global": lambda p: (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93(V%s\ntR." % f"touch {p}".encode()
    ),
    "eval": lambda p: pickle.dumps(Calls(eval, f"open({str(p)!r}, 'w')"), 2),
    "dotted": lambda p: (
        b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93(V%s\ntR." % f"touch {p}".encode()
    ),
    "dotted_type": lambda p: b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile2\x93.",
    "numpy.load": lambda p: b"cnumpy\nload\n(S'%s'\ntR." % str(p).encode(),
    "numpy.memmap": lambda p: (
        b"cnumpy\nmemmap\n(S'%s'\nS'u1'\nS'w+'\nI0\nI4\ntR." % str(p).encode()
    ),
    "f2py": lambda p: b"cnumpy.f2py.crackfortran\nmyeval\n(S'1'\ntR.",
    "runstring": lambda p: b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
    "mkdir": lambda p: pickle.dumps([Calls(os.mkdir, str(p))], 0),
    "getattr": lambda p: b"cbuiltins\ngetattr\n(S'a'\nS'b'\ntR.",
    "bytes": lambda p: b"cbuiltins\nbytes\n(L10000000000000L\ntR.",
    "codec": lambda p: b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
    "ndarray": lambda p: b"cnumpy\nndarray\n((L1000000000000L\nttR.",
    "build": lambda p: b"cnumpy\ndtype\n}S'_make'\ncnumpy\nndarray\nsb.",
    "persistent": lambda p: b"Pfile\n.",
    "extension": lambda p: b"\x80\x02\x82\x01.",
    "state": lambda p: b"c_codecs\nencode\nN}S'x'\nI1\ns\x86b.",
}


@pytest.mark.parametrize("name", GADGETS)
def test_malicious_pickles_are_refused_and_do_nothing(tmp_path, name):
    touched = tmp_path / MARK
    path = tmp_path / "evil.pkl"
    path.write_bytes(GADGETS[name](touched))
    with pytest.raises(ValueError, match=r"evil.pkl: .*nothing of it was run"):
        load_pickle(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (GADGETS["global"]("x"), "posix.system"),
        (GADGETS["stack_global"]("x"), "posix.system"),
        (GADGETS["numpy.load"]("x"), "numpy.load"),
        (pickle.dumps(pd.Series([1])), "pandas"),
        (pickle.dumps(torch.zeros(1)), "torch"),
        (pickle.dumps(Path("x")), "pathlib"),
    ],
)
def test_the_offending_global_is_named(tmp_path, data, name):
    (tmp_path / "f.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=f"references {name}.*, which is not allowed"):
        load_pickle(tmp_path / "f.pkl")


def test_an_evil_object_inside_an_array_is_refused(tmp_path):
    array = np.array([Calls(os.system, f"touch {tmp_path / MARK}")], dtype=object)
    write_pickle(tmp_path / "f.pkl", {"train": {"id": array}})
    with pytest.raises(ValueError, match=r"references posix\.system"):
        load_pickle(tmp_path / "f.pkl")
    assert not (tmp_path / MARK).exists()


def forged(shape, spec, state, content) -> bytes:
    """An array whose parts do not fit, as no numpy writes it."""
    make = Calls(np.dtype, spec, False, True)
    make.call = (*make.call, state)
    array = Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b")
    array.call = (*array.call, (1, shape, make, False, content))
    return pickle.dumps(array, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (forged((10**12,), "f4", (3, "<", None, None, None, -1, -1, 0), b"1234"), "other content"),
        (forged((-1,), "f4", (3, "<", None, None, None, -1, -1, 0), b""), "shape"),
        (forged((2,), "O", (3, "|", None, None, None, -1, -1, 63), [1]), "other content"),
        (forged((1,), "O", (3, "|", None, None, None, -1, -1, 0), b"12345678"), "other content"),
        (
            forged(
                (1,),
                "V8",
                (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0),
                b"12345678",
            ),
            "type 'V8'",
        ),
        (
            forged(
                (1,), "f8", (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0), b"8" * 8
            ),
            "records",
        ),
        (pickle.dumps(np.zeros(2, [("a", "f4")])), "type 'V4'"),
        (pickle.dumps(np.zeros(2, "M8[s]")), "type 'M8'"),
    ],
)
def test_forged_arrays_never_reach_numpy(tmp_path, data, message):
    (tmp_path / "f.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_pickle(tmp_path / "f.pkl")


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04", b"no pickle", b"\x80\x63.", b"]a.", b"\x8e" + b"\xff" * 8]
)
def test_damaged_pickles_are_clear_errors(tmp_path, data):
    (tmp_path / "f.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"f\.pkl cannot be read as a pickle"):
        load_pickle(tmp_path / "f.pkl")


def in_a_dictionary(key: object, protocol: int) -> bytes:
    """A dictionary is begun before the key and ends after it."""
    data = pickle.dumps(key, protocol)[2 if protocol > 1 else 0 : -1]
    return b"}" + data + b"I1\ns."


@pytest.mark.parametrize("protocol", range(6))
def test_tuples_whose_hash_would_take_forever_are_refused(tmp_path, protocol):
    nested: tuple = (1,)
    for _ in range(15):
        nested = (nested, nested)
    assert load_pickle(write_pickle(tmp_path / "f.pkl", nested, protocol)) == nested
    for _ in range(40):
        nested = (nested, nested)
    (tmp_path / "f.pkl").write_bytes(in_a_dictionary(nested, protocol))
    with pytest.raises(ValueError, match=r"key of type tuple.* as keys; nothing of it was run"):
        load_pickle(tmp_path / "f.pkl")


DUPLICATE, TUPLE_OF_2 = b"2", b"\x86"


def test_128_bytes_of_nested_tuples_are_refused_at_once(tmp_path):
    data = b"\x80\x04}N" + (DUPLICATE + TUPLE_OF_2) * 60 + b"K\x01s."
    assert len(data) == 128
    (tmp_path / "f.pkl").write_bytes(data)
    begin = time.monotonic()
    with pytest.raises(ValueError, match="key of type tuple") as error:
        load_pickle(tmp_path / "f.pkl")
    assert time.monotonic() - begin < 1
    assert len(str(error.value)) < 1000


def test_ctrl_c_ends_a_slow_load(tmp_path):
    """As many instructions as take minutes."""
    (tmp_path / "f.pkl").write_bytes(b"\x80\x04" + b"N0" * 30_000_000 + b"N.")
    timer = threading.Timer(0.5, _thread.interrupt_main)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        load_pickle(tmp_path / "f.pkl")
    timer.join()
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("key", [(1, 2), frozenset([1]), 2**61 - 1, -(2**70)])
@pytest.mark.parametrize("protocol", range(6))
def test_keys_that_can_be_made_to_collide_are_refused(tmp_path, key, protocol):
    path = tmp_path / "f.pkl"
    for content in ([{key: 1}], [{"a": 1, key: 1}], [{key}], [frozenset([key])]):
        with pytest.raises(ValueError, match=r"key of type .*save it with strings or numbers"):
            load_pickle(write_pickle(path, content, protocol))
    path.write_bytes(in_a_dictionary(key, protocol))
    with pytest.raises(ValueError, match="key of type"):
        load_pickle(path)


def test_plain_keys_load(tmp_path):
    keys = {"a", b"a", 1, 2**61 - 2, -5, 0.5, float("inf"), None, np.str_("x"), np.int64(2**62)}
    content = [dict.fromkeys(keys, 1), keys]
    assert load_pickle(write_pickle(tmp_path / "f.pkl", content)) == content


@pytest.mark.parametrize("name", ["_codecs\nencode", "numpy\ndtype", "numpy\nndarray"])
def test_an_allowed_global_cannot_be_changed(tmp_path, name):
    """BUILD sets attributes of the object on the stack; those of a class would stay for all."""
    path = tmp_path / "table.pkl"
    path.write_bytes(f"c{name}\n}}S'__doc__'\nS'changed'\nsb.".encode())
    with pytest.raises(ValueError, match="tries to change"):
        load_pickle(path)
    path.write_bytes(pickle.dumps({"a": b"1"}, protocol=2))
    assert load_pickle(path) == {"a": b"1"}


KEYS = st.integers(2 - 2**61, 2**61 - 2) | st.text()
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@given(content=PLAIN, protocol=st.sampled_from([0, 2, 4, 5]))
def test_plain_data_loads_as_it_was(tmp_path_factory, content, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    assert load_pickle(path) == content


@given(st.binary(max_size=60))
def test_any_bytes_load_or_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.pkl"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        load_pickle(path)


def test_truncated_pickles_are_refused(tmp_path):
    path = tmp_path / "cut.pkl"
    whole = pickle.dumps({"rows": np.arange(50)})
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.pkl cannot be read as a pickle"):
            load_pickle(path)


DATA = {
    "floats": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "bools": np.array([True, False]),
    "text": np.array(["a", "ü"]),
    "objects": np.array(["a", None, "中"], dtype=object),
    "scalar": np.float64(1.5),
    "number": np.int64(7),
    "string": np.str_("ü"),
    "empty": np.zeros((2, 0, 3), np.float32),
    "plain": [1, 2.5, "x", b"\xff", None, True, (1, {"k": {1, 2}}), frozenset([3]), b""],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("old_numpy", [False, True])
def test_data_of_any_protocol_and_numpy_loads_as_it_was(tmp_path, protocol, old_numpy):
    data = pickle.dumps(DATA, protocol)
    if old_numpy:  # numpy 1 wrote the same under the module's older name
        old = data.replace(b"numpy._core.", b"numpy.core.")
        data = old if protocol < 4 else _reframed(data)
    (tmp_path / "f.pkl").write_bytes(data)
    found = load_pickle(tmp_path / "f.pkl")
    for name, value in DATA.items():
        assert np.array_equal(found[name], value) if name != "plain" else found[name] == value
        if isinstance(value, np.ndarray | np.generic):
            assert found[name].dtype == value.dtype.newbyteorder("=")


def _reframed(data: bytes) -> bytes:
    """The module's name shortened by one letter, in its string and in the frames around it."""
    out = bytearray()
    ends = [*[position for _, _, position in pickletools.genops(data)][1:], len(data)]
    for (code, argument, start), end in zip(pickletools.genops(data), ends, strict=True):
        if code.name == "FRAME":
            continue  # frames are optional
        if isinstance(argument, str) and argument.startswith("numpy._core."):
            text = argument.replace("numpy._core.", "numpy.core.").encode()
            out += b"\x8c" + bytes([len(text)]) + text
        else:
            out += data[start:end]
    return bytes(out)


def test_python_2_pickles_load(tmp_path):
    # pickle.dumps({'id': ['a'], 'x': numpy.array([1., 2.], 'f4')}, 0) under Python 2.
    data = (
        b"(dp0\nS'id'\np1\n(lp2\nS'a'\np3\nasS'x'\np4\ncnumpy.core.multiarray\n_reconstruct\np5\n"
        b"(cnumpy\nndarray\np6\n(I0\ntp7\nS'b'\np8\ntp9\nRp10\n(I1\n(I2\ntp11\ncnumpy\ndtype\np12\n"
        b"(S'f4'\np13\nI0\nI1\ntp14\nRp15\n(I3\nS'<'\np16\nNNNI-1\nI-1\nI0\ntp17\nbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\x00@'\np18\ntp19\nbs."
    )
    (tmp_path / "f.pkl").write_bytes(data)
    found = load_pickle(tmp_path / "f.pkl")
    assert found["id"] == ["a"]
    assert found["x"].tolist() == [1.0, 2.0]
