"""The state service: its rules, its stores on both databases, and the whole behind real gRPC."""
