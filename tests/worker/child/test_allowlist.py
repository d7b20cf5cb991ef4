"""Pillow knows some forty formats, some by way of other programs: which of them a child can reach at all."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

#: Opens files that belong to other plugins, by our way and then by Pillow's own; tells which plugins were loaded.
PROGRAM = textwrap.dedent("""
    import io, json, sys
    from PIL import Image
    from shared.errors import RenderFailure
    from worker.child import __main__ as child
    from worker.child import opening

    strangers = {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 9 9\\n%%EndComments\\nshowpage\\n%%EOF",
        "PPM": b"P6 2 2 255\\n" + bytes(12),
        "ICO": b"\\0\\0\\1\\0\\1\\0" + bytes(60),
        "PSD": b"8BPS\\0\\1" + bytes(60),
        "WMF": b"\\xd7\\xcd\\xc6\\x9a\\0\\0" + bytes(80),
        "PDF": b"%PDF-1.4\\n",
        "XPM": b"/* XPM */\\n",
        "TGA": b"\\0\\0\\2" + bytes(9) + b"\\2\\0\\2\\0\\x18\\0" + bytes(12),
    }
    child._warm_up(child._specimen(name) for name in child.PILLOW_FORMATS if name in Image.SAVE)
    opened = []
    for name, content in strangers.items():
        try:
            opening.open_picture(io.BytesIO(content), max_pixels=100)
            opened.append(name)
        except RenderFailure:
            pass
    loaded = sorted(name for name in sys.modules if name.startswith("PIL.") and name.endswith("Plugin"))
    Image.open(io.BytesIO(strangers["PPM"]))  # Pillow itself would have taken it
    print(json.dumps({"opened": opened, "loaded": loaded}))
""")

#: Ours, and PPM's, which Pillow loads with the most usual ones, and which is not on our list.
ALLOWED = {f"PIL.{name}ImagePlugin" for name in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP")}


def test_no_plugin_outside_the_list_is_ever_loaded() -> None:
    """An EPS goes to Ghostscript, which runs programs: its plugin is not there to be reached, nor is any other."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["opened"] == []
    assert set(told["loaded"]) <= ALLOWED
