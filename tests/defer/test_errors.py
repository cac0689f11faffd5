"""One table of codes; errors of rooms and libraries become ours in one place."""

import errno
import importlib
import pickle
import re

import msgspec
import pytest
import zmq

from defer import errors
from defer.errors import DeferError
from defer.outcomes import OUTCOMES
from defer.translating import EXTRAS, translate


def every(root: type[DeferError]) -> list[type[DeferError]]:
    return [root, *(found for child in root.__subclasses__() for found in every(child))]


def test_every_error_has_a_row_and_every_row_an_error() -> None:
    assert {kind.code for kind in every(DeferError)} == set(OUTCOMES)


def table() -> list[type[DeferError]]:
    """The classes of the table; which others exist depends on the modules that were imported before."""
    return [kind for kind in every(DeferError) if kind.__module__ == errors.__name__]


def test_a_class_of_another_module_has_the_code_of_its_base() -> None:
    assert all(kind.code == kind.__base__.code for kind in set(every(DeferError)) - set(table()))


def test_codes_are_kebab_case_and_belong_to_one_class() -> None:
    codes = [kind.code for kind in table() if kind is not DeferError]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    assert drawn == {kind.__name__ for kind in table()} - {"DeferError"}


@pytest.mark.parametrize("kind", table())
def test_errors_survive_the_wire_and_pickle(kind: type[DeferError]) -> None:
    error = kind("it broke", hint="mend it", where="here")
    again = errors.from_code(**error.to_dict())
    assert again.to_dict() == error.to_dict()
    assert pickle.loads(pickle.dumps(error)).to_dict() == error.to_dict()
    assert str(error) == "here: it broke"
    assert 0 < error.exit_code < 256
    assert 400 <= error.http_status < 600


def test_an_unknown_code_of_the_wire_is_shown() -> None:
    error = errors.from_code("melted", "the board melted")
    assert isinstance(error, errors.AgentFault)
    assert "melted" in str(error)


@pytest.mark.parametrize(
    ("code", "exit_code"), [("load-failed", 65), ("engine-missing", 69), ("store-full", 74), ("melted", 69)]
)
def test_what_an_agent_answers_ends_with_the_code_of_its_cause(code: str, exit_code: int) -> None:
    assert errors.from_code(code, "it broke").exit_code == exit_code


ROOMS = ["partitioner", "router", "node_agent", "models"]


def room_errors() -> list[type[Exception]]:
    found: list[type[Exception]] = []
    for room in ROOMS:
        module = importlib.import_module(f"{room}.errors")
        found += [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Exception)]
    return [kind for kind in found if isinstance(getattr(kind, "code", None), str)]


@pytest.mark.parametrize("kind", room_errors(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_errors_of_rooms_are_never_internal(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "it broke")
    error.hint = "mend it"  # type: ignore[attr-defined]
    ours = translate(error)
    assert type(ours) not in (errors.Internal, DeferError)
    assert ours.hint == "mend it"
    assert ours.message == "it broke"


@pytest.mark.parametrize(
    ("room", "name", "expected"),
    [
        ("partitioner", "MissingDimension", errors.WrongInput),
        ("partitioner", "ModelNotFound", errors.FileMissing),
        ("partitioner", "MissingWeights", errors.InvalidModel),
        ("partitioner", "TooManyParts", errors.UsageError),
        ("partitioner", "OutputExists", errors.OutputExists),
        ("router", "NoRoute", errors.NoRoute),
        ("models", "UnknownModelError", errors.UnknownModel),
    ],
)
def test_the_nearest_meaning_is_found(room: str, name: str, expected: type[DeferError]) -> None:
    kind = getattr(importlib.import_module(f"{room}.errors"), name)
    error = kind.__new__(kind)
    Exception.__init__(error, "it broke")
    assert type(translate(error)) is expected


def test_a_failed_write_says_what_its_cause_says() -> None:
    kind = importlib.import_module("partitioner.errors").WriteFailed
    error = kind("could not write")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert type(translate(error)) is errors.DiskFull


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, errors.DiskFull),
        (errno.EDQUOT, errors.DiskFull),
        (errno.EADDRINUSE, errors.PortInUse),
        (errno.EACCES, errors.PermissionDenied),
        (errno.EROFS, errors.PermissionDenied),
        (errno.ENOENT, errors.FileMissing),
        (errno.ECONNREFUSED, errors.AgentUnreachable),
        (errno.ENOMEM, errors.OutOfMemory),
        (errno.EIO, errors.FileProblem),
    ],
)
def test_system_errors(number: int, expected: type[DeferError]) -> None:
    ours = translate(OSError(number, "said the system", "/some/file"))
    assert type(ours) is expected
    assert ours.where == "/some/file"


def test_zeromq_errors_are_system_errors() -> None:
    assert type(translate(zmq.ZMQError(errno.EADDRINUSE))) is errors.PortInUse


def test_a_missing_module_names_its_extra() -> None:
    for module, extra in EXTRAS.items():
        ours = translate(ModuleNotFoundError(f"No module named '{module}'", name=module))
        assert type(ours) is errors.MissingExtra
        assert f'pip install "defer-edge[{extra}]"' in ours.hint


def test_a_submodule_counts_as_its_package() -> None:
    ours = translate(ModuleNotFoundError("No module named 'onnx.checker'", name="onnx.checker"))
    assert type(ours) is errors.MissingExtra


def test_other_import_errors_are_ours() -> None:
    assert type(translate(ModuleNotFoundError("No module named 'x'", name="x"))) is errors.Internal


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        (MemoryError(), errors.OutOfMemory),
        (KeyboardInterrupt(), errors.Cancelled),
        (TimeoutError(), errors.DeadlineExceeded),
        (msgspec.ValidationError("Expected `int`, got `str`"), errors.InvalidDocument),
        (ValueError("first line\nsecond line"), errors.Internal),
        (ExceptionGroup("two", [MemoryError(), ValueError()]), errors.OutOfMemory),
    ],
)
def test_other_errors(foreign: BaseException, expected: type[DeferError]) -> None:
    ours = translate(foreign)
    assert type(ours) is expected
    assert "\n" not in str(ours)


def test_our_own_errors_pass() -> None:
    error = errors.NoRoute("no way")
    assert translate(error) is error


@pytest.mark.parametrize("code", ["overloaded", "not-allowed", "deadline-exceeded"])
def test_what_comes_over_the_wire_without_a_hint_gets_the_usual_one(code: str) -> None:
    assert errors.from_code(code, "no").hint
    assert errors.from_code(code, "no", "do this").hint == "do this"
