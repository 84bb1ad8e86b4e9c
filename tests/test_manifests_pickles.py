"""A release's pickled tables are data: whatever else they hold is refused."""

import pickle

import pytest

from manifests.adapters.pickles import load_pickle


@pytest.mark.parametrize("name", ["_codecs\nencode", "numpy\ndtype", "numpy\nndarray"])
def test_what_it_names_cannot_be_changed(tmp_path, name):
    """BUILD sets attributes of what lies on the stack; of a class they would stay for all."""
    path = tmp_path / "table.pkl"
    path.write_bytes(f"c{name}\n}}S'__doc__'\nS'changed'\nsb.".encode())
    with pytest.raises(ValueError, match="tries to change"):
        load_pickle(path)
    path.write_bytes(pickle.dumps({"a": b"1"}, protocol=2))
    assert load_pickle(path) == {"a": b"1"}
