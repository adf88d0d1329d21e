import inspect

import pytest

from core import errors

FAMILY = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.DropforgeError)]


def test_codes_and_slugs_are_unique() -> None:
    assert len({cls.code for cls in FAMILY}) == len(FAMILY)
    assert len({cls.slug for cls in FAMILY}) == len(FAMILY)


@pytest.mark.parametrize("cls", FAMILY)
def test_every_class_says_one_sentence_and_maps_to_a_contract_exit_code(cls: type[errors.DropforgeError]) -> None:
    assert cls.__doc__ and cls.__doc__.strip().endswith(".")
    assert cls.exit_code in {1, 2, 3, 4, 5}
    assert 400 <= cls.http_status < 600


def test_an_error_reads_as_where_what_and_fix() -> None:
    error = errors.StorageError("disk full", where="/inbox", fix="free space")
    assert str(error) == "/inbox: disk full (fix: free space)"
