"""The Grafana dashboards as code, one per module; `scripts/dashboards.py` generates their JSON files."""
