"""What a run will need before it runs: memory, operations and network traffic of a step, for `anit plan`.

workload     the samples that are planned for
footprint    one step of the real code on tensors that hold nothing: its peak of memory, what it computes where
simulation   that step on N ranks: what is gathered when, and who waits
forecast     both together under ZeRO: what a rank holds, how long a step takes
line         the same in a line, for `anit train`
"""
