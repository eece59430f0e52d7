"""Examples that run as they stand: start with demo.py, or with hello.py for ten lines."""
