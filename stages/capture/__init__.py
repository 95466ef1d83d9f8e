"""Where packets come in: capture files and live interfaces."""
