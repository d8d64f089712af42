"""The page of `rca app` by its client: what is drawn, saved and shown, what is refused, and whose photograph it is."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.prediction_runs import with_prototypes

from rca_lightning import RCAModule, SegmentationModule
from rca_lightning.data.visualization import overlay_mask
from rca_lightning.errors import ArgumentError
from rca_lightning.prediction.loading import LoadedModel

pytest.importorskip("gradio")
from gradio import processing_utils
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from rca_lightning.prediction import app_server
from rca_lightning.prediction.app_server import serve

# What gradio asks of pandas, at every call.
pytestmark = pytest.mark.filterwarnings("ignore:.*no_silent_downcasting", "ignore:The copy keyword")

NAMES = ["circle", "<b>square</b>", "ring"]
THRESHOLD = 0.5


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    torch.manual_seed(0)
    options = {"num_prototypes": 2, "background_prototypes": 3, "scales": (0.5, 1.0), "backbone_mode": "trained"}
    return LoadedModel(with_prototypes(RCAModule(3, NAMES, backbone="resnet14", weights="none", **options)))


@pytest.fixture(scope="module")
def served(model: LoadedModel) -> Iterator[str]:
    with serve(model) as address:
        yield address


@pytest.fixture
def client(served: str, tmp_path: Path) -> Client:
    return Client(served, verbose=False, download_files=tmp_path / "downloads")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((72, 50))
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth.save(folder / "turned.jpg", exif=exif)
    smooth.save(folder / "plain.png")
    smooth.convert("L").save(folder / "grey.png")
    smooth.convert("RGBA").save(folder / "clear.png")
    smooth.convert("CMYK").save(folder / "printed.tif")
    smooth.resize((1100, 600)).save(folder / "large.jpg")
    (folder / "broken.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:300])
    (folder / "<b>text.png").write_text("no image")
    return {file.stem: file for file in folder.iterdir()}


def value(part: Any) -> Any:
    return part["value"] if isinstance(part, dict) and part.get("__type__") == "update" else part


def draw(client: Client, photograph: Path, tags: list[str] = [], threshold: float = THRESHOLD) -> list[Any]:  # noqa: B006
    return list(client.predict(handle_file(photograph), tags, threshold, api_name="/draw"))


def saved_mask(parts: list[Any], at: int = 2) -> np.ndarray:
    return np.asarray(Image.open(value(parts[at])))


@pytest.mark.parametrize(
    ("name", "tags"),
    [("plain", ["circle", "ring"]), ("turned", ["ring"]), ("plain", []), ("grey", []), ("clear", []), ("printed", [])],
)
def test_mask_and_maps_are_those_of_predict(client, model, photographs, name, tags):
    expected = model.predict(photographs[name], tags or None, threshold=THRESHOLD)
    parts = draw(client, photographs[name], tags)
    mask = Image.open(value(parts[2]))
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), expected.mask)
    assert Path(value(parts[2])).name == f"{name}.png"
    with np.load(value(parts[3])) as stored:
        assert stored["names"].tolist() == list(expected.maps)
        assert np.array_equal(stored["maps"], np.stack([one.astype(np.float16) for one in expected.maps.values()]))
    assert [picture["caption"] for picture in parts[4]] == list(expected.maps)
    shown = np.asarray(Image.open(parts[0]).convert("RGB"), dtype=float)
    whole = overlay_mask(expected.photograph, expected.mask).astype(float)
    assert shown.shape == whole.shape  # upright
    assert np.abs(shown - whole).mean() < 12  # it is compressed
    assert ("the model decided" in parts[1]) == (not tags)


def test_large_photographs_are_shown_smaller_and_saved_whole(client, photographs):
    parts = draw(client, photographs["large"])
    assert max(Image.open(parts[0]).size) == 1024
    assert Image.open(value(parts[2])).size == (1100, 600)


def test_threshold_redraws_without_the_network(client, model, photographs, monkeypatch):
    draw(client, photographs["plain"], NAMES)
    calls = []
    handle = model.module.network.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(type(model.module.network), "stages", lambda *_: calls.append(1))
    try:
        for threshold in (0.2, 0.95, 1.0):
            parts = client.predict(threshold, api_name="/redraw")
            monkeypatch.undo()
            expected = model.predict(photographs["plain"], NAMES, threshold=threshold)
            assert np.array_equal(saved_mask(list(parts)), expected.mask)
            monkeypatch.setattr(type(model.module.network), "stages", lambda *_: calls.append(1))
    finally:
        handle.remove()
    assert calls == []
    assert "lower the threshold" in parts[1]  # at 1 nothing is drawn
    assert not expected.mask.any()


def test_table_holds_the_shares_of_the_prototypes(client, model, photographs):
    parts = draw(client, photographs["plain"], ["<b>square</b>", "ring"])
    result = model.predict(photographs["plain"], ["<b>square</b>", "ring"], threshold=THRESHOLD)
    attention = model.prototype_attention(result)
    assert attention.attention.shape[1:] == (2, 3)  # of the first scale, a cell of 16 pixels
    shares = attention.shares(torch.from_numpy(result.mask))
    expected = {}
    for number, label in enumerate(attention.labels.tolist()):
        name = NAMES[label - 1] if label else "background"
        columns = (shares.drawn[number], shares.everywhere[number], shares.strongest[number])
        expected[name, int(attention.numbers[number]) + 1] = [
            None if torch.isnan(one) else round(100 * float(one), 1) for one in columns
        ]
    rows = parts[5]["data"]
    assert {(row[0], row[1]): row[2:] for row in rows} == {
        key: values for key, values in expected.items() if values[1] >= 0.05
    }
    assert list(dict.fromkeys(row[0] for row in rows)) == ["<b>square</b>", "ring", "background"]
    for name in ("<b>square</b>", "background"):
        ordered = [row[3] for row in rows if row[0] == name]
        assert ordered == sorted(ordered, reverse=True)
    assert value(parts[6]) == f"{rows[0][0]} {rows[0][1]}"


def test_prototype_is_brightest_where_its_attention_is_greatest(client, model, photographs):
    rows = draw(client, photographs["plain"], ["ring"])[5]["data"]
    attention = model.prototype_attention(model.predict(photographs["plain"], ["ring"]))
    photograph = np.asarray(Image.open(photographs["plain"]).convert("RGB"), dtype=float)
    for name, number, *_ in rows:
        picture = client.predict(f"{name} {number}", api_name="/prototype")
        label = 0 if name == "background" else NAMES.index(name) + 1
        at = (attention.labels == label) & (attention.numbers == number - 1)
        of_cells = torch.nn.functional.interpolate(attention.attention[at][None], photograph.shape[:2], mode="bilinear")
        shown = np.asarray(Image.open(picture).convert("RGB"), dtype=float)
        tinted = np.abs(shown - 0.45 * photograph).sum(axis=2)
        assert np.corrcoef(tinted.flatten(), of_cells.numpy().flatten())[0, 1] > 0.8, (name, number)


def test_names_of_classes_are_text_and_no_page(client, photographs):
    parts = draw(client, photographs["plain"], ["<b>square</b>"], 0.0)
    assert "&lt;b&gt;square&lt;/b&gt;" in parts[1]
    assert "<b>square" not in parts[1].replace("<b>&lt;", "")


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "broken.jpg: cut off or damaged"), ("<b>text", "text.png: not an image")]
)
def test_unreadable_photographs_are_one_line_and_the_page_lives_on(client, photographs, name, message):
    with pytest.raises(AppError) as caught:
        draw(client, photographs[name])
    assert message in str(caught.value)
    assert "<b>" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(Path("tmp")) not in str(caught.value).partition(":")[0]  # the name alone, not where it was put
    assert saved_mask(draw(client, photographs["plain"])).shape == (50, 72)


def test_without_a_photograph(client):
    with pytest.raises(AppError, match="Drop a photograph first"):
        client.predict(None, [], THRESHOLD, api_name="/draw")
    mask, said, *_ = client.predict(THRESHOLD, api_name="/redraw")
    assert mask is None
    assert "The mask comes here" in said
    assert client.predict(None, api_name="/prototype") is None


def test_two_visitors_do_not_mix_their_photographs(served, model, photographs, tmp_path):
    first, second = (Client(served, verbose=False, download_files=tmp_path / name) for name in "ab")
    jobs = [
        one.submit(handle_file(photographs[name]), tags, THRESHOLD, api_name="/draw")
        for one, name, tags in ((first, "plain", ["circle"]), (second, "turned", ["ring"]))
    ]
    for job in jobs:
        job.result(timeout=60)
    for one, name, tags in ((first, "plain", ["circle"]), (second, "turned", ["ring"]), (first, "plain", ["circle"])):
        parts = list(one.predict(0.3, api_name="/redraw"))
        assert np.array_equal(saved_mask(parts), model.predict(photographs[name], tags, threshold=0.3).mask)
        assert {row[0] for row in parts[3]["data"]} == {*tags, "background"}


def test_results_of_few_visitors_are_kept(model, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(app_server, "_VISITORS", 2)
    with serve(model) as address:
        visitors = [Client(address, verbose=False, download_files=tmp_path / str(number)) for number in range(3)]
        for visitor in visitors:
            draw(visitor, photographs["plain"])
        assert [visitor.predict(0.5, api_name="/redraw")[0] is None for visitor in visitors[:0:-1]] == [False, False]
        assert visitors[0].predict(0.5, api_name="/redraw")[0] is None


def test_a_segmenter_has_no_threshold_and_no_prototypes(photographs, tmp_path):
    torch.manual_seed(0)
    module = SegmentationModule(3, NAMES, backbone="resnet14", weights="none", head="linear")
    with torch.no_grad():
        for weight in module.network.head.parameters():
            weight *= 100  # else all is of one label
    model = LoadedModel(module)
    assert model.threshold is None
    with serve(model) as address:
        client = Client(address, verbose=False, download_files=tmp_path)
        slider = next(one for one in client.config["components"] if one["props"].get("elem_id") == "threshold")
        assert slider["props"]["visible"] is False
        parts = draw(client, photographs["plain"])
        assert np.array_equal(saved_mask(parts), model.predict(photographs["plain"]).mask)
        assert parts[5]["data"] == [] or parts[5]["data"] == [[""] * 5]
        assert client.predict(0.5, api_name="/redraw")[0] is None


def ask(address: str, path: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_own_files_for_own_pages(served, client, photographs):
    parts = draw(client, photographs["plain"])
    assert Path(value(parts[2])).is_file()
    assert ask(served, "") == 200
    for path in (__file__, "/etc/passwd", str(photographs["plain"]), str(Path.cwd() / "setup.cfg")):
        assert ask(served, f"gradio_api/file={path}") == 403
    for path in ("file=http://192.0.2.1/x.png", "file=HTTPS://192.0.2.1/x.png", "proxy=http://192.0.2.1/"):
        assert ask(served, f"gradio_api/{path}") == 403
    assert ask(served, "config", Host="rebound.example") == 403
    assert ask(served, "config", Origin="http://elsewhere.example") == 403
    assert ask(served, "config", Origin=served.rstrip("/")) == 200
    assert ask(served, "config", Host="localhost") == 200
    assert ask(served, "monitoring") in (403, 404)


def test_no_address_is_fetched_in_place_of_a_photograph(client, monkeypatch):
    asked = []
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", lambda *given, **_: asked.append(given))
    address = {"path": "http://192.0.2.1/photograph.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="not downloaded"):
        client.predict(address, [], THRESHOLD, api_name="/draw")
    assert asked == []


def test_nothing_of_the_page_stays(model, photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")  # asks for nothing through it
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", str(photographs["plain"].parent))  # meant for other pages
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "True")  # gradio sets it, with its own statistics off
    before = dict(os.environ)
    with serve(model) as address:
        draw(Client(address, verbose=False, download_files=tmp_path / "downloads"), photographs["plain"])
        assert list((tmp_path / "temporary").glob("rca-app-*/*/plain.png"))
        monkeypatch.delenv("HTTP_PROXY")
        assert ask(address, f"gradio_api/file={photographs['plain']}") == 403
        monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    assert not list((tmp_path / "temporary").glob("rca-app-*"))
    assert dict(os.environ) == before
    with pytest.raises(OSError, match=r"refused"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5)


def test_hosts_of_other_machines_are_refused(model):
    with (
        pytest.raises(ArgumentError, match=r"host='192\.0\.2\.1': no address of this machine"),
        serve(model, host="192.0.2.1"),
    ):
        pass


def test_the_page_sends_no_statistics(model):
    page = app_server.build_app(model)
    assert page.analytics_enabled is False
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
