"""The loop's decisions: from the view of a run to the changes that come next. No clock, no I/O, no randomness but what
is passed in; each decision is folded into the view at once, so that what is decided next sees it.

`planner` asks `open_steps` what becomes of what is open, then `turns` what comes next, or `ends` where the run is over.
Those write into the `draft` of one transition, which is handed out as a `plan`.
"""
