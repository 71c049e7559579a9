"""How a calibration is fitted: labels and scores read and joined, maps, thresholds and bands.

Needs the extra `eval`; what it gives is applied by edgejudge.calibration, which needs none of it.
"""
