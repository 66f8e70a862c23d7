"""The asynchronous strategies of a job: their options, and how an old update is weighed.

An asynchronous job has no rounds in which all sites train the same model. ``concurrency`` sites
train at any time, each the model that was the newest when it was asked, and a new version of the
model is made of each ``buffer_size`` updates. The *staleness* of an update is the number of
versions that were made between the one that it was trained on and the one that it enters: 0 for an
update of the newest.

``fedbuff``   FedBuff, Nguyen et al. 2022 (arXiv:2106.06639): with the differences ``d`` of the
              updates to the versions that they were trained on, the next model is
              ``x + server_learning_rate * sum(n * s * d) / sum(n)``, where ``n`` is 1, or the
              number of examples, and ``s`` the weight of the update's staleness
``fedasync``  FedAsync, Xie et al. 2019 (arXiv:1903.03934): each update ``y`` makes a version, which
              is ``x + mixing * s * (y - x)``

The page is docs/how-to/asynchronous.md.
"""
