"""Grafana's dashboards as code, a file each; `scripts/dashboards.py` writes them."""
