"""Aggregation rules that look at single updates, over blocks of the updates.

No rule stacks the updates: each reads them where they lie, a block of some thousand elements of
all of them at a time, and threads share the blocks. What a rule needs beside the updates and its
result is a few MiB for each thread, and for Gram matrices ``8 * n * n`` bytes for each lane.

    blocks      how arrays are parted into blocks, read and written, and shared between threads
    networks    sorting networks, pruned to the ranks that are needed
    ranks       median, trimmed mean, and the second phase of Bulyan
    distances   the Gram matrix of the updates, and squared norms
    selection   Krum, Multi-Krum, and the first phase of Bulyan
    weighing    coefficients of the geometric median and of q-FedAvg, and the sum that they make
    rules       the rules by the name of the strategy

An update is a mapping from names to arrays with the names, element types and shapes of the model,
and finite: the caller checks this. The page is docs/adr/0039-single-updates.md.
"""
