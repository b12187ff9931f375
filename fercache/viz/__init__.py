"""What people look at: report, model card, timelines and annotated clips. Open `report/__init__.py` first."""
