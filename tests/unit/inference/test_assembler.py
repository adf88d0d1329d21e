"""Text leaves the assembler whole, once, and never with a piece of a stop string."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from inference.assembler import TextAssembler


class ByteCodec:
    """Tokens are bytes: the hardest case, every character is cut."""

    eos_ids = frozenset({999})

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def run(text: str, stop: Sequence[str] = ()) -> tuple[list[str], TextAssembler]:
    assembler = TextAssembler(ByteCodec(), stop)
    shown = []
    for byte in text.encode():
        shown.append(assembler.push(byte))
        if assembler.stopped:
            break
    shown.append(assembler.finish())
    return shown, assembler


@given(st.text(max_size=40))
def test_without_stop_strings_all_text_comes_out_whole(text: str) -> None:
    shown, assembler = run(text)
    assert "".join(shown) == assembler.text == text
    assert not assembler.stopped


@given(
    st.text(alphabet="ab⓪x", max_size=30),
    st.lists(st.text(alphabet="ab⓪", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_cuts_at_its_first_place_whatever_the_token_boundaries(text: str, stop: list[str]) -> None:
    shown, assembler = run(text, stop)
    data = text.encode()
    for size in range(len(data) + 1):  # the text as it grows: the first moment a stop string is in it
        grown = data[:size].decode("utf-8", errors="ignore")
        places = [grown.find(s) for s in stop if s in grown]
        if places:
            assert "".join(shown) == assembler.text == grown[: min(places)]
            assert assembler.stopped
            return
    assert "".join(shown) == text
    assert not assembler.stopped


def test_text_that_may_become_a_stop_string_waits() -> None:
    assembler = TextAssembler(ByteCodec(), ["END"])
    assert [assembler.push(b) for b in b"xENy"] == ["x", "", "", "ENy"]


def test_a_character_is_never_cut() -> None:
    assembler = TextAssembler(ByteCodec())
    assert [assembler.push(b) for b in "é①".encode()] == ["", "é", "", "", "①"]


def test_bytes_that_never_become_a_character_are_shown_as_replacement_at_the_end() -> None:
    assembler = TextAssembler(ByteCodec())
    assert assembler.push(0xE2) == ""
    assert assembler.finish() == "\ufffd"


def test_finish_after_a_stop_adds_nothing() -> None:
    assembler = TextAssembler(ByteCodec(), ["b", "ab"])
    for byte in b"xxab":
        assembler.push(byte)
    assert (assembler.finish(), assembler.text) == ("", "xx")
