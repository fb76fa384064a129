"""Every catalogue says everything, with the same placeholders, and briefly enough for Telegram."""

import string
import tomllib
from pathlib import Path

import pytest

from core import config, samples
from core.errors import ImageError, MemoryLimitError, UserError
from core.images import read
from core.studio.jobs import Failure
from tests.bot_doubles import flat
from ui.bot import keyboards
from ui.bot.gallery import Style
from ui.bot.limits import CALLBACK_DATA
from ui.bot.records import ChatMemory, Choices, Draft, Place, Source, Task
from ui.bot.texts import Texts, languages, texts

ENGLISH = languages()["en"]
OTHERS = [language for code, language in languages().items() if code != "en"]


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def own(language: Texts) -> dict[str, str]:
    """What a catalogue says itself, without what English completes."""
    path = Path(keyboards.__file__).parent / "catalogues" / f"{language.code}.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    entries: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            entries |= {f"{key}.{name}": text.strip() for name, text in value.items()}
        elif isinstance(value, str):
            entries[key] = value.strip()
    return entries


@pytest.mark.parametrize("language", OTHERS, ids=lambda language: language.code)
def test_a_catalogue_is_complete_and_fits_the_english_one(language: Texts) -> None:
    mine, english = own(language), own(ENGLISH)
    assert english.keys() <= mine.keys()
    for key, text in english.items():
        assert placeholders(mine[key]) == placeholders(text), key
    names = {f"styles.{sample.name}" for sample in samples.styles()}
    assert names <= mine.keys()


@pytest.mark.parametrize("language", languages().values(), ids=lambda language: language.code)
def test_presets_have_names_and_descriptions(language: Texts) -> None:
    for preset in config.presets():
        for kind in ("presets", "described"):
            assert f"{kind}.{preset.name}" in own(language)


@pytest.mark.parametrize("language", languages().values(), ids=lambda language: language.code)
def test_texts_keep_within_telegrams_limits(language: Texts) -> None:
    mine = own(language)
    for key, text in mine.items():
        assert 0 < len(text) <= 1024, key  # any of them may become a caption
        if key.startswith(("commands.", "admin_commands.")):
            assert 3 <= len(text) <= 256, key
        if key.startswith("press."):
            assert len(text) <= 200, key
        if key.startswith("button."):
            assert len(text) <= 32, key


@pytest.mark.parametrize("language", languages().values(), ids=lambda language: language.code)
def test_every_button_fits(language: Texts) -> None:
    place, source = Place(chat=-(10**15)), Source(kind="telegram", name="x")
    draft = Draft(id="f" * 16, place=place, user=10**15, styles=(source,) * 9)
    task = Task(id="f" * 16, place=place, user=10**15, language="en", content=source, style=source, choices=Choices())
    gallery = [Style(sample.name, sample.title) for sample in samples.styles()] + [
        Style("f" * 12, "own", Path("own.png"))
    ]
    boards = [
        keyboards.styles(language, draft, gallery),
        keyboards.confirmation(language, draft),
        keyboards.cancelling(language, task),
        keyboards.retrying(language, task),
        keyboards.variants(language, task, 4),
        keyboards.settings(language, ChatMemory(), 10**15, 6),
    ]
    buttons = [button for board in boards for row in board for button in row]
    assert len(buttons) > 40
    assert all(len(button.data.encode()) <= CALLBACK_DATA and button.text for button in buttons)


@pytest.mark.parametrize(
    ("code", "expected"), [("ru", "ru"), ("ru-RU", "ru"), ("RU", "ru"), ("pt-br", "en"), (None, "en"), ("", "en")]
)
def test_a_language_code_finds_its_catalogue(code: str | None, expected: str) -> None:
    assert texts(code).code == expected


@pytest.mark.parametrize(
    ("seconds", "english", "russian"),
    [
        (0.5, "5 s", "5 с"),
        (42, "40 s", "40 с"),
        (58, "1 min", "1 мин"),
        (700, "12 min", "12 мин"),
        (5400, "1.5 h", "1.5 ч"),
        (7200, "2 h", "2 ч"),
    ],
)
def test_durations(seconds: float, english: str, russian: str) -> None:
    assert texts("en").duration(seconds) == english
    assert texts("ru").duration(seconds) == russian


def test_what_core_says_is_said_in_russian() -> None:
    russian = texts("ru")
    for data in (b"", b"not a picture", flat((1, 2, 3))[:40], flat((1, 2, 3), (4, 4)), flat((1, 2, 3), (400, 10))):
        with pytest.raises(ImageError) as caught:
            read(data)
        said = russian.explain(caught.value)
        assert not foreign(said), (str(caught.value), said)
    memory = MemoryLimitError(
        "level 4 needs 9.0 GiB of memory, and there is 2.0 GiB", "Choose level 2, the largest that fits"
    )
    assert (
        russian.explain(memory)
        == "Для такого размера нужно 9.0 ГБ памяти, а есть 2.0 ГБ. Выберите в /settings размер поменьше."
    )


def test_what_no_catalogue_knows_is_passed_on() -> None:
    error = UserError("the moon is full", "Wait")
    assert texts("en").explain(error) == "The moon is full. Wait."
    assert texts("ru").explain(Failure(cause="the moon is full")) == "Студия сообщает: the moon is full."


def foreign(text: str) -> bool:
    known = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "HEIC", "RGB", "settings")
    words = "".join(letter if letter.isascii() and letter.isalpha() else " " for letter in text).split()
    return any(word not in known for word in words)
