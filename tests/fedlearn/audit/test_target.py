"""What an audit reads of an app and of its sites' data, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fedlearn.audit.site_data import Records, compose, divide, read_records, write_site
from fedlearn.audit.target import AuditTarget
from fedlearn.errors import ConfigError

EXAMPLE = Path(__file__).parents[3] / "examples/existing-flower-app"


def target(tmp_path: Path, text: str, example: str = "existing-flower-app") -> AuditTarget:
    spec = tmp_path / "audit.toml"
    spec.write_text(text)
    return AuditTarget(EXAMPLE.parent / example, spec=spec)


def test_the_model_of_an_example_answers_for_the_records_of_its_sites(tmp_path: Path) -> None:
    found = target(
        tmp_path,
        'file = "digits.csv"\ntrained = 0.8\nmodel = "digits_app.task:new_model"\n'
        'scale = 0.0625\nimage = [8, 8]\nrate_key = "learning-rate"\n',
    )
    assert found.classes == 10
    assert (found.shape, found.image) == ((64,), (8, 8))
    assert found.rate() == 0.05
    x = found.inputs(found.records["site-a"].x)
    assert x.max() == 1.0
    state = found.new_model().state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    assert found.predictor()(arrays, x).shape == (len(x), 10)
    by_number = {str(n): array for n, array in enumerate(arrays.values())}
    np.testing.assert_array_equal(found.predictor()(by_number, x), found.predictor()(arrays, x))
    assert found.in_file(1.0) == 16
    assert not [name for name in sys.modules if name.startswith("digits_app")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('file = "x.txt"', "must be the name of a .npz or .csv"),
        ('model = "a"', 'must be "module:function"'),
        ('model = "a:b"\npredict = "c:d"', "excludes `model`"),
        ("low = 1.0\nhigh = 0.0", "must be above low"),
        ("scale = 0", "must not be 0"),
        ('rate = 1.0\nrate_key = "a"', "excludes `rate`"),
        ('modle = "a:b"', "modle"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "call", "message"),
    [
        ("", lambda t: t.records, "does not exist; an audit changes the data"),
        ("", lambda t: t.new_model(), "is needed by this audit: the function"),
        ("", lambda t: t.predictor(), "or `predict` is needed"),
        ("", lambda t: t.rate(), "the step size of the app"),
        ('rate_key = "nothing"', lambda t: t.rate(), "'nothing' is None"),
        ('model = "digits_app.task:train_it"', lambda t: t.new_model(), "cannot be imported"),
        ('model = "digits_app.task:nn"', lambda t: t.new_model(), "is not a function"),
        ('model = "builtins:list"', lambda t: t.new_model(), "returned a list"),
        ('file = "digits.csv"\nimage = [7, 8]', lambda t: t.shape, "has 56 values"),
    ],
)
def test_what_an_app_has_not_is_refused(
    tmp_path: Path, text: str, call: object, message: str
) -> None:
    assert callable(call)
    with pytest.raises(ConfigError, match=message):
        call(target(tmp_path, text))


def test_arrays_of_another_model_are_refused(tmp_path: Path) -> None:
    found = target(tmp_path, 'file = "digits.csv"\nmodel = "digits_app.task:new_model"')
    predict = found.predictor()
    with pytest.raises(ConfigError, match=r"the model has the array '0\.bias'"):
        predict({"w": np.zeros(3)}, np.zeros((1, 64), np.float32))
    with pytest.raises(ConfigError, match="has the shape"):
        predict({str(n): np.zeros(3) for n in range(4)}, np.zeros((1, 64), np.float32))


def test_an_app_without_torch_names_how_it_predicts(tmp_path: Path) -> None:
    text = 'file = "data.csv"\npredict = "tumours_app.task:scores"'
    found = target(tmp_path, text, "quickstart")
    x = found.inputs(found.records["north"].x)
    with pytest.raises(ConfigError, match=r"returned an array of shape .* not \(\d+, classes\)"):
        found.predictor()({"0": np.zeros(10), "1": np.zeros(1)}, x)


@pytest.mark.parametrize("name", ["data.csv", "data.npz"])
def test_written_records_are_read_with_the_same_bits(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    source = tmp_path / "source"
    source.mkdir()
    (source / "other.txt").write_text("kept")
    records = Records(x=rng.normal(size=(5, 3)), y=np.arange(5), header="a,b,c,label")
    write_site(source, tmp_path / "target", name, records)
    found = read_records(tmp_path / "target" / name)
    np.testing.assert_array_equal(found.x, records.x)
    np.testing.assert_array_equal(found.y, records.y)
    assert (tmp_path / "target/other.txt").read_text() == "kept"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("trained", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_an_app_trains_on_exactly_the_rows_that_it_should(count: int, trained: float) -> None:
    train = Records(x=np.zeros((count, 2)), y=np.zeros(count, np.int64))
    others = Records(x=np.ones((3, 2)), y=np.ones(3, np.int64))
    found, rest = divide(compose(train, others, trained), trained)
    assert len(found) == count
    assert not found.y.any()
    assert rest.y.all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"1,2,3\n1,2,x\n", "not a table of numbers"),
        ("a.csv", b"a,b,label\n", "has no row"),
        ("a.csv", b"1\n2\n", "1 columns"),
        ("a.csv", b"1,2,0.5\n", "not one whole number"),
        ("a.csv", b"1,nan,1\n", "NaN"),
        ("a.csv", b"1,2,-1\n", "labels count from 0"),
        ("a.csv", b"\xff\xfe", "is not text"),
        ("a.npz", b"not a zip", "is not an .npz"),
    ],
)
def test_data_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_records(path)


def test_an_archive_without_labels_or_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ConfigError, match="has no array y"):
        read_records(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.array([object()]), y=np.zeros(1))
    with pytest.raises(ConfigError, match=r"not an \.npz file of arrays"):
        read_records(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=np.zeros((3, 1)), y=np.zeros(2))
    with pytest.raises(ConfigError, match="3 examples and 2 labels"):
        read_records(tmp_path / "c.npz")
