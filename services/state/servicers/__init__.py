"""The RPCs of state: translate, delegate, translate."""
