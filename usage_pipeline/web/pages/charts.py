"""Charts as Vega-Lite specifications, and the script that draws them.

Altair takes milliseconds for a specification, so each is made once a process. Rows are put beside
it in the page, numbers as text with all their digits; colours are the style sheet's.
"""

from __future__ import annotations

import gzip
import threading
from functools import cache
from importlib.metadata import version
from typing import Any

import altair as alt
import vl_convert
from starlette.requests import Request
from starlette.responses import FileResponse

from usage_pipeline.infra.disk import scratch
from usage_pipeline.settings import Settings

_SCRIPT = "window.vegaEmbed = vegaEmbed;"
_making = threading.Lock()
_HEIGHT = 260
_LABEL = "abs(datum.value) < 10000 ? format(datum.value, ',~f') : format(datum.value, '~s')"


def chart_script(request: Request) -> FileResponse:
    """Vega, Vega-Lite and Vega-Embed, as the installed package brings them; made once."""
    settings: Settings = request.app.state.web.settings
    path = settings.web_dir / f"vega-{version('vl-convert-python')}.js.gz"
    with _making:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch(settings) as work:
                made = work / path.name
                script = vl_convert.javascript_bundle(_SCRIPT)
                made.write_bytes(gzip.compress(script.encode()))
                made.replace(path)
    return FileResponse(
        path,
        media_type="text/javascript",
        headers={
            "Content-Encoding": "gzip",  # which every browser takes
            "Cache-Control": "public, max-age=31536000, immutable",
        },
    )


def chart_script_address() -> str:
    """With the version, so that browsers may keep it."""
    return f"/charts.js?v={version('vl-convert-python')}"


def _spec(chart: alt.LayerChart | alt.FacetChart | alt.Chart) -> dict[str, Any]:
    spec: dict[str, Any] = chart.properties(width="container", height=_HEIGHT).to_dict()
    spec.pop("config", None)  # the page's style sheet has the colours
    spec.pop("datasets", None)
    return spec


def _dated(*numbers: str) -> alt.NamedData:
    # Dates are days, not instants of the browser's time zone.
    parse = {"date": "utc:'%Y-%m-%d'", **dict.fromkeys(numbers, "number")}
    return alt.NamedData(name="rows", format=alt.DataFormat(parse=parse))


def _day_axis() -> alt.X:
    return alt.X(
        "date:T",
        scale=alt.Scale(type="utc"),
        axis=alt.Axis(title=None, format="%-d %b", grid=False, labelOverlap=True, tickCount=8),
    )


def _quantity_axis(field: str) -> alt.Y:
    return alt.Y(f"{field}:Q", axis=alt.Axis(title=None, labelExpr=_LABEL, tickCount=5))


_TOOLTIP = [alt.Tooltip("day:N", title="Day"), alt.Tooltip("said:N", title="Quantity")]


@cache
def trend_chart(*, forecast: bool) -> dict[str, Any]:
    """Days, and the band in which four of five days to come should lie."""
    base = alt.Chart(_dated("quantity", "expected", "low", "high")).encode(x=_day_axis())
    layers = [base.mark_line(style="past").encode(y=_quantity_axis("quantity"))]
    value = "datum.quantity"
    if forecast:
        band = base.mark_area(style="band").encode(y=_quantity_axis("low"), y2="high:Q")
        expected = base.mark_line(style="expected").encode(y=_quantity_axis("expected"))
        layers = [band, expected, *layers]
        value = "isValid(datum.quantity) ? datum.quantity : datum.expected"
    nearest = alt.selection_point(
        name="nearest", on="pointerover", nearest=True, fields=["date"], empty=False
    )
    near = (
        base.transform_calculate(value=value)
        .mark_point(style="near")
        .encode(
            y=_quantity_axis("value"),
            tooltip=_TOOLTIP,
            opacity=alt.condition(nearest, alt.value(1), alt.value(0)),
        )
        .add_params(nearest)
    )
    return _spec(alt.layer(*layers, near))


@cache
def lines_chart() -> dict[str, Any]:
    """Several counts by day."""
    base = alt.Chart(_dated("value")).encode(
        x=_day_axis(),
        y=_quantity_axis("value"),
        color=alt.Color("series:N", sort=None, legend=alt.Legend(title=None, orient="top")),
    )
    points = base.mark_point(style="dot").encode(
        tooltip=[
            alt.Tooltip("day:N", title="Day"),
            alt.Tooltip("series:N", title="Of"),
            alt.Tooltip("said:N", title="Count"),
        ]
    )
    return _spec(alt.layer(base.mark_line(style="series"), points))


@cache
def areas_chart() -> dict[str, Any]:
    """Parts of a whole by day, one above the other."""
    return _spec(
        alt.Chart(_dated("value"))
        .mark_area(style="part")
        .encode(
            x=_day_axis(),
            y=_quantity_axis("value"),
            color=alt.Color("series:N", sort=None, legend=alt.Legend(title=None, orient="top")),
            tooltip=[
                alt.Tooltip("day:N", title="Day"),
                alt.Tooltip("series:N", title="Of"),
                alt.Tooltip("said:N", title="Count"),
            ],
        )
    )


@cache
def heat_chart() -> dict[str, Any]:
    """Rates by cohort and by months since then."""
    data = alt.NamedData(name="rows", format=alt.DataFormat(parse={"rate": "number"}))
    return _spec(
        alt.Chart(data)
        .mark_rect(style="cell")
        .encode(
            x=alt.X(
                "months_since:O", axis=alt.Axis(title="Months since registration", labelAngle=0)
            ),
            y=alt.Y("cohort:N", sort=None, axis=alt.Axis(title=None)),
            color=alt.Color(
                "rate:Q",
                scale=alt.Scale(domain=[0, 1]),
                legend=alt.Legend(title=None, format=".0%", orient="top"),
            ),
            tooltip=[
                alt.Tooltip("cohort:N", title="Registered"),
                alt.Tooltip("months_since:O", title="Months since"),
                alt.Tooltip("said:N", title="Active"),
            ],
        )
    )
