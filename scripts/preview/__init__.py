"""What `scripts/dashboards_preview.py` draws with: panels' JSON and Prometheus' answers in, pages out."""
