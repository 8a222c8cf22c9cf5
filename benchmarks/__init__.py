"""Measures the hand-written recurrence beside torch's own; nothing here is needed to use `manual_bptt`."""
