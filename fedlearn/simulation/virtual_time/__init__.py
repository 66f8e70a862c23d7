"""Virtual time: how long simulated sites take, when they are there, and which of them never answer.

Each model is a function of a seed, a site and a call or a moment, and of nothing else
(:func:`fedlearn.job.seeds.derive`), so a simulation repeats to the bit, however many processes it
has and wherever it was interrupted.

The page is docs/how-to/virtual-time.md.
"""
