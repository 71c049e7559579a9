"""What a Judge answers beside screening: labels, scores, comparisons, rankings, checklists.

edgejudge.calls, a part of Judge, imports it with the first such call: screening starts without.
"""
