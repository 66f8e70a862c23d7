"""The server: the job's strategy, and the accuracy on Fashion-MNIST's 10,000 test images.

The simulator names the folder of the test images; a deployed ServerApp has none.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from niid_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Start from a new model, and evaluate the model of each round."""
    most = int(context.run_config["test-images"])
    images, labels = task.load(f"{context.node_config['data']}/test.npz", most)

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        model = task.new_model()
        model.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord(task.judge(model, images, labels))

    FedAvg(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord(task.new_model().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
