"""What a run will need before it runs: memory, operations and network traffic of a step, for `anit plan`.

footprint    one step of the real code on tensors that hold nothing: its peak of memory and its operations
forecast     the same on N ranks under ZeRO: what a rank holds, how long a step takes, what crosses the network
"""
