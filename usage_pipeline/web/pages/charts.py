"""Charts as Vega-Lite specifications, and the script that draws them."""

from __future__ import annotations

import threading
from importlib.metadata import version

import vl_convert
from starlette.requests import Request
from starlette.responses import FileResponse

from usage_pipeline.infra.disk import scratch
from usage_pipeline.settings import Settings

_SCRIPT = "window.vegaEmbed = vegaEmbed;"
_making = threading.Lock()


def chart_script(request: Request) -> FileResponse:
    """Vega, Vega-Lite and Vega-Embed, as the installed package brings them; made once."""
    settings: Settings = request.app.state.web.settings
    path = settings.web_dir / f"vega-{version('vl-convert-python')}.js"
    with _making:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch(settings) as work:
                made = work / path.name
                made.write_text(vl_convert.javascript_bundle(_SCRIPT), "utf-8")
                made.replace(path)
    return FileResponse(path, media_type="text/javascript")
