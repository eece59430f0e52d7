"""The public servicers: translate, delegate, translate."""
