"""The image builder behind `build.py`: one role in, one measured appliance out."""
