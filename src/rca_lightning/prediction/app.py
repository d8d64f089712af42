"""A page in the browser: a photograph goes in, its mask, maps and prototypes come out (extra `app`)."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from rca_lightning.data.classes import voc_palette
from rca_lightning.data.visualization import overlay_maps
from rca_lightning.errors import RCAError, require_extra
from rca_lightning.prediction.loading import LoadedModel
from rca_lightning.prediction.result import PredictedMask
from rca_lightning.rca.prototype_attention import PrototypeAttention

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio whenever it would send something
gr: Any = require_extra("gradio", extra="app", needed_for="the page of rca app")

_SHOWN_SIDE = 1024  # longest side of a picture on the page, in pixels
_FILES_LIVE = (300, 3600)  # files of the page are looked through every 300 s, and removed after an hour
_UNDECIDED = 255
_LEAST_SHARE = 0.0005  # of the attention, below which a prototype is left out of the table
_HEADERS = ["Class", "No.", "Drawn, %", "All, %", "Most, %"]
_WIDTHS = ["32%", "14%", "18%", "18%", "18%"]
CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto !important}
#tags .wrap {max-height: 15rem; overflow-y: auto}
#mask img, #answered img {width: 100%; height: 100%; object-fit: contain}
#maps {min-height: 0 !important; height: auto !important}
#maps .grid-wrap {height: auto; max-height: none; min-height: 0}
@media (max-width: 640px) {
  #mask, #answered {height: 300px !important; min-height: 0 !important}
}
#maps .thumbnail-lg {aspect-ratio: auto}
#drawn p {display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; margin: 0; min-height: 1.6rem}
#drawn i {display: inline-block; width: .85rem; height: .85rem; border-radius: .2rem; margin-right: .4rem;
  vertical-align: -.1rem; border: 1px solid var(--border-color-primary)}
"""
_INTRODUCTION = "# Masks from tags\n\nDrop a photograph, and the model draws which pixels belong to what it shows."
_ABOUT_LEARNING = " It has learned that from photographs and lists of what they show; nobody has drawn an outline."
_ABOUT_MAPS = (
    "### Where the model sees each class\n\nOne picture for each class: the stronger the colour, the surer the model. "
)
_ABOUT_THRESHOLD = "A pixel belongs to the class whose map is highest there, if it exceeds the threshold."
_ABOUT_PROTOTYPES = (
    "### Prototypes that answered\n\nA prototype stands for parts of photographs that the model found to be alike. "
    "Every place of this photograph asks all of them which it resembles, and shares out its attention: that is what "
    "the maps are made of. Choose one to see where it answered.\n\n**Drawn**: its share of the attention where its "
    "class is drawn. **All**: in the whole photograph{scale}. **Most**: the share of the photograph "
    "that asked it more than any other."
)


@dataclass(frozen=True)
class _Shown:
    """What one visitor looks at.

    Attributes:
        result: the mask of the photograph.
        tagged: whether the visitor has given the tags.
        attention: of its prototypes; `None` where no map is read from it.
    """

    result: PredictedMask
    tagged: bool
    attention: PrototypeAttention | None


def build_app(model: LoadedModel) -> Any:
    """Builds the page: photograph and tags, mask and threshold, maps of the classes, prototypes that answered.

    Each visitor has a photograph of their own; the network runs for one at a time. `rca app` serves it by
    `prediction.app_server.serve`, which bounds how many results are kept.

    Args:
        model: predicts.

    Returns:
        `gradio.Blocks`, whose endpoints are `/draw`, `/redraw` and `/prototype`.

    Raises:
        MissingExtraError: on import, without gradio.
    """
    threshold = model.threshold
    with gr.Blocks(title="Masks from tags", analytics_enabled=False, delete_cache=_FILES_LIVE) as page:
        shown = gr.State(None)
        gr.Markdown(_INTRODUCTION + (_ABOUT_LEARNING if model.task == "localize" else ""))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photograph = gr.File(label="Photograph", height=150, elem_id="photograph")
                tags = gr.CheckboxGroup(
                    list(model.class_names),
                    label="What does it show?",
                    info="Tick what you see. With nothing ticked the model decides.",
                    elem_id="tags",
                )
                draw = gr.Button("Draw the mask", variant="primary")
                slider = gr.Slider(
                    0, 1, threshold or 0.0, step=0.01, label="Threshold", elem_id="threshold",
                    info="Higher: less is drawn. The network does not run again.", visible=threshold is not None,
                    buttons=[],
                )  # fmt: skip
                with gr.Row():
                    mask_file = gr.DownloadButton("Save mask (PNG)", interactive=False, size="sm", min_width=120)
                    maps_file = gr.DownloadButton("Save maps (NPZ)", interactive=False, size="sm", min_width=120)
            with gr.Column(scale=5, min_width=320):
                picture = _picture("Mask", "The mask over the photograph", "mask", 520)
                drawn = gr.HTML(_legend(None), elem_id="drawn", label="Drawn")
        with gr.Column(visible=False) as of_maps:
            gr.Markdown(_ABOUT_MAPS + (_ABOUT_THRESHOLD if threshold is not None else ""))
            gallery = gr.Gallery(
                label="Maps of the classes", show_label=False, columns=3, object_fit="contain", elem_id="maps",
                buttons=["fullscreen"], interactive=False,
            )  # fmt: skip
        with gr.Column(visible=False) as of_prototypes:
            gr.Markdown(_ABOUT_PROTOTYPES.format(scale=_said_scale(model)))
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    table = gr.Dataframe(
                        headers=_HEADERS, datatype=["str", *["number"] * 4], interactive=False, wrap=True, type="array",
                        column_widths=_WIDTHS, max_height=460, elem_id="prototypes", buttons=[], value=[],
                        label="Prototypes", show_label=False,
                    )  # fmt: skip
                with gr.Column(scale=4, min_width=300):
                    chosen = gr.Dropdown([], label="Prototype", elem_id="prototype", interactive=True)
                    answered = _picture("Where it answered", "Attention over the photograph", "answered", 400)

        _refuse_addresses(photograph)
        files = Path(mask_file.GRADIO_CACHE)
        outputs = [shown, picture, drawn, mask_file, maps_file, gallery, table, chosen, answered]
        outputs += [of_maps, of_prototypes]
        network = {"concurrency_id": "network", "concurrency_limit": 1}
        given = [photograph, tags, slider]
        again = {"fn": partial(_draw, model, files), "inputs": given, "outputs": outputs, **network}
        hidden = {"api_visibility": "private", "show_progress": "hidden"}
        empty = {"fn": _nothing, "inputs": None, "outputs": outputs, **hidden}
        draw.click(**again, api_name="draw").failure(**empty)
        photograph.upload(**again, api_visibility="private").failure(**empty)
        photograph.clear(**empty)
        slider.input(
            partial(_redraw, files), [shown, slider], [shown, picture, drawn, mask_file, table], api_name="redraw",
            trigger_mode="always_last", show_progress="hidden", **network,
        )  # fmt: skip
        answer = {"outputs": answered, "show_progress": "hidden", **network}
        chosen.input(_answer, [shown, chosen], **answer, api_name="prototype")
        table.select(_choose, None, chosen, **hidden).then(_answer, [shown, chosen], **answer, api_visibility="private")
    return page.queue(max_size=32)


def _picture(label: str, described: str, name: str, height: int) -> Any:
    return gr.Image(
        label=label, alt_text=described, elem_id=name, height=height, interactive=False, buttons=["fullscreen"],
        type="filepath",
    )  # fmt: skip


def _refuse_addresses(photograph: Any) -> None:
    """Makes a component take dropped files alone; gradio would fetch an address that is given in place of one."""
    take = photograph.async_move_resource_to_block_cache

    async def take_file(path: str | None) -> str | None:
        if "://" in str(path):
            raise _error("photographs are not downloaded; give a file")
        taken: str | None = await take(path)
        return taken

    photograph.async_move_resource_to_block_cache = take_file


def _said_scale(model: LoadedModel) -> str:
    """Which of its scales the prototypes are of, for models that see a photograph at another size or at several."""
    scales = model.module.hparams["scales"] if model.reads_attention else [1]
    if list(scales) == [1]:
        return ""
    return ", read at its own size" if scales[0] == 1 else f", read at {scales[0]:g} times its size"


def _draw(
    model: LoadedModel, files: Path, photograph: str | None, tags: list[str], threshold: float | None
) -> tuple[Any, ...]:
    """Predicts, and fills the page."""
    if not photograph:
        raise _error("Drop a photograph first.")
    try:
        result = model.predict(photograph, tags or None)
        assert isinstance(result, PredictedMask)
        if result.threshold is not None and threshold is not None:
            result = result.with_threshold(threshold)
        shown = _Shown(result, bool(tags), model.prototype_attention(result))
    except RCAError as error:
        raise _error(str(error).replace(str(photograph), Path(photograph).name)) from error
    choices = _choices(shown)
    first = choices[0] if choices else None
    return (
        shown,
        _overlay(result),
        _legend(shown),
        _file(files, result, ".png"),
        _file(files, result, ".npz"),
        _map_pictures(result),
        _rows(shown),
        gr.Dropdown(choices=choices, value=first),
        _answer(shown, first),
        gr.Column(visible=True),
        gr.Column(visible=shown.attention is not None),
    )


def _nothing() -> tuple[Any, ...]:
    """Empties the page, as nothing on it is of the photograph that was dropped last."""
    no_file = gr.DownloadButton(value=None, interactive=False)
    no_choice, hidden = gr.Dropdown(choices=[], value=None), gr.Column(visible=False)
    return (None, None, _legend(None), no_file, no_file, None, [], no_choice, None, hidden, hidden)


def _redraw(files: Path, shown: _Shown | None, threshold: float) -> tuple[Any, ...]:
    """Draws the mask at another threshold."""
    if shown is None or shown.result.threshold is None:
        return (shown, None, _legend(None), gr.DownloadButton(value=None, interactive=False), [])
    shown = replace(shown, result=shown.result.with_threshold(threshold))
    return (shown, _overlay(shown.result), _legend(shown), _file(files, shown.result, ".png"), _rows(shown))


def _choose(event: gr.SelectData) -> str:
    """The prototype of the row that was clicked."""
    return _name(str(event.row_value[0]), int(event.row_value[1]))


_choose.__annotations__["event"] = gr.SelectData  # gradio asks for the type, and the annotations here are text


def _answer(shown: _Shown | None, name: str | None) -> Image.Image | None:
    """Lays the attention of one prototype over the photograph, as a share of its greatest."""
    if shown is None or shown.attention is None or name is None:
        return None
    attention = shown.attention
    for number, (label, own) in enumerate(zip(attention.labels.tolist(), attention.numbers.tolist(), strict=True)):
        if _name(_class_name(shown, label), own + 1) == name:
            of_cells = attention.attention[number]
            photograph = _smaller(shown.result.photograph)
            enlarged = _resized(of_cells / of_cells.max().clamp_min(1e-12), photograph.shape[:2])
            return Image.fromarray(_tinted(photograph, enlarged, label))
    return None


def _name(of_class: str, number: int) -> str:
    return f"{of_class} {number}"


def _class_name(shown: _Shown, label: int) -> str:
    return shown.result.class_names[label - 1] if label else "background"


def _choices(shown: _Shown) -> list[str]:
    return [_name(row[0], row[1]) for row in _rows(shown)]


def _rows(shown: _Shown) -> list[list[Any]]:
    """The table of prototypes: class after class, the background last, in each the most attention first."""
    attention = shown.attention
    if attention is None:
        return []
    shares = attention.shares(torch.from_numpy(shown.result.mask))
    everywhere = shares.everywhere.tolist()
    labels = attention.labels.tolist()
    kept = [number for number, share in enumerate(everywhere) if share >= _LEAST_SHARE]
    kept.sort(key=lambda number: (labels[number] == 0, labels[number], -everywhere[number]))

    def percent(values: torch.Tensor, number: int) -> float | None:
        value = float(values[number])
        return None if value != value else round(100 * value, 1)

    return [
        [
            _class_name(shown, labels[number]),
            int(attention.numbers[number]) + 1,
            percent(shares.drawn, number),
            percent(shares.everywhere, number),
            percent(shares.strongest, number),
        ]
        for number in kept
    ]


def _legend(shown: _Shown | None) -> str:
    """What is drawn and how large it is, as HTML."""
    if shown is None:
        return "<p>The mask comes here.</p>"
    result = shown.result
    said = "by the tags you ticked" if shown.tagged else "the model decided what it shows"
    labels, counts = np.unique(result.mask, return_counts=True)
    parts = []
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        if label != 0:
            named = "undecided" if label == _UNDECIDED else result.class_names[label - 1]
            colour = "#{:02x}{:02x}{:02x}".format(*voc_palette()[label].tolist())
            share = f"{100 * count / result.mask.size:.1f} %"
            parts.append(f'<span><i style="background:{colour}"></i><b>{html.escape(named)}</b> {share}</span>')
    if not parts:
        seen = ", ".join(result.maps) or "no class"
        lower = "; lower the threshold" if result.threshold else ""
        return f"<p>Nothing is drawn ({html.escape(seen)}, {said}){lower}.</p>"
    return f"<p>{''.join(parts)}<span>{said}</span></p>"


def _file(files: Path, result: PredictedMask, ending: str) -> Any:
    """A button that downloads the mask or the maps, from a file that is removed with those of the page."""
    files.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=files))
    return gr.DownloadButton(value=str(result.save(folder / f"{result.image_id}{ending}")), interactive=True)


def _overlay(result: PredictedMask) -> Image.Image:
    photograph = _smaller(result.photograph)
    size = (photograph.shape[1], photograph.shape[0])
    mask = np.asarray(Image.fromarray(result.mask).resize(size, Image.Resampling.NEAREST))
    return replace(result, photograph=photograph, mask=mask).overlay()


def _map_pictures(result: PredictedMask) -> list[tuple[Image.Image, str]]:
    """One picture for each map, with the name of its class."""
    photograph = _smaller(result.photograph)
    return [
        (Image.fromarray(_tinted(photograph, _resized(torch.from_numpy(values), photograph.shape[:2]), label)), name)
        for name, label, values in _labelled(result.maps, result.class_names)
    ]


def _labelled(maps: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, int, Any]]:
    return [(name, names.index(name) + 1, values) for name, values in maps.items()]


def _tinted(photograph: npt.NDArray[np.uint8], values: torch.Tensor, label: int) -> npt.NDArray[np.uint8]:
    """The photograph in the colour of a mask value where a map is high; black, of the background, would hide it."""
    return overlay_maps(photograph, values[None], torch.tensor([(label or _UNDECIDED) - 1]))


def _resized(values: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """A map `(H, W)` at another size."""
    smaller = size[0] < values.shape[0]
    resize: Callable[..., torch.Tensor] = torch.nn.functional.interpolate
    return resize(values[None, None].float(), size=size, mode="bilinear", antialias=smaller)[0, 0].clamp(0, 1)


def _smaller(photograph: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The photograph no larger than pictures on the page are."""
    image = Image.fromarray(photograph)
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return np.asarray(image)


def _error(message: str) -> Exception:
    """What the page shows as a message, of which it would render HTML."""
    error: Exception = gr.Error(html.escape(message), print_exception=False, title="This did not work")
    return error
