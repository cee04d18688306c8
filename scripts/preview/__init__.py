"""Rendering of dashboards as HTML pages, for `scripts/dashboards_preview.py`."""
