"""CoopQ: bits for layers.

    checkpoint -> Game -> Samples -> Sensitivity -> Plan -> quantized checkpoint

A step is a verb in a file of its own, a value a noun in a file of its own; files depend only leftwards.
"""
