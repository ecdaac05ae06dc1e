"""Test strict JSON and the checksum of stored objects."""

import pytest

from segjax.system import stored


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "found NaN, which is not JSON"),
        ('{"a": 1e999}', "Out of range"),
        ('{"a": 1, "b": 2, "a": 1}', "'a' is there twice"),
        (r'{"a": "\ud800"}', "surrogates not allowed"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "invalid start byte"),
        ("{", "Expecting property name"),
        ("9" * 5000, "integer string conversion"),
    ],
)
def test_what_is_not_json_is_a_value_error(text, said):
    with pytest.raises(ValueError, match=said):
        stored.parse(text)


def test_json_is_parsed():
    assert stored.parse('{"a": [1, 2.5, null, true, "zwölf"]}'.encode()) == {
        "a": [1, 2.5, None, True, "zwölf"]
    }


CONTENT = {"a": 1, "b": [0.1, "x", None], "c": {"d": 2.0, "e": True}}


def test_an_object_is_as_it_was_sealed():
    sealed = stored.seal(CONTENT)
    assert list(sealed) == ["a", "b", "c", "checksum"]
    assert stored.unseal(sealed) == CONTENT
    assert stored.unseal(dict(reversed(sealed.items()))) == CONTENT
    assert stored.unseal({**sealed, "a": 1.0, "c": {"e": True, "d": 2}}) == CONTENT
    assert stored.unseal(CONTENT) == CONTENT  # of long ago


@pytest.mark.parametrize(
    "change",
    [{"a": 2}, {"b": [0.1, "y", None]}, {"c": {"d": 2.0, "e": None}}, {"f": 1}, {"checksum": "0"}],
)
def test_a_changed_object_is_refused(change):
    with pytest.raises(ValueError, match="changed after it was written; undo that, or delete its"):
        stored.unseal(stored.seal(CONTENT) | change)


@pytest.mark.parametrize("content", [None, [], 3, "x"])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(ValueError, match="expected an object"):
        stored.unseal(content)
