"""SFRIK with Lightning: a module to start from, on one device or several.

    pip install . lightning    # in a clone of this repository
    python examples/lightning_sfrik.py --data FOLDER    # FOLDER/<class>/<image>; without it, random images

Under DDP nothing has to be gathered or scaled: every process has the loss of the whole batch, with its gradient.
`terms.parts` are of the whole batch too, so they are logged without `sync_dist`.
"""

import argparse

import lightning
import torch
import torchvision

from sfrik import SFRIK
from sfrik.diagnostics import measure
from sfrik.networks import Encoder, build_backbone, build_projector
from sfrik.optim import LARS
from sfrik.views import build_views


class Pretraining(lightning.LightningModule):
    def __init__(self, arch, dim, rate):
        super().__init__()
        backbone = build_backbone(arch, stem="small")
        self.encoder = Encoder(backbone, build_projector(backbone.num_features, f"{dim}-{dim}"))
        self.criterion = SFRIK(dim)
        self.rate = rate

    def training_step(self, batch, _):
        views, _ = batch
        embeddings = self.encoder(views)  # one forward pass for all views, as DDP expects
        terms = self.criterion(embeddings)
        self.log_dict(terms.parts)
        if self.global_step % 50 == 0:  # the loss does not show a collapse to a few dimensions
            self.log("effective_rank", measure(*(z.detach() for z in embeddings)).effective_rank)
        return terms.loss

    def configure_optimizers(self):
        optimizer = LARS(self.parameters(), lr=self.rate, weight_decay=1e-6)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main():
    parser = argparse.ArgumentParser(description="SFRIK with Lightning.")
    parser.add_argument("--data", help="folder with a subfolder per class; labels are not used")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()

    views_of = build_views("simclr", size=32, dataset="image_folder").per_image  # an image -> two random views
    if options.data:
        dataset = torchvision.datasets.ImageFolder(options.data, views_of)
    else:
        dataset = torchvision.datasets.FakeData(4 * options.batch_size, (3, 32, 32), transform=views_of)
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True)
    trainer = lightning.Trainer(max_steps=options.steps, log_every_n_steps=50, enable_checkpointing=False, logger=False)
    module = Pretraining(options.arch, dim=512, rate=0.3 * options.batch_size / 256)
    trainer.fit(module, loader)
    logged = {name: round(value.item(), 4) for name, value in trainer.callback_metrics.items()}
    print(f"after {trainer.global_step} steps:", logged)


if __name__ == "__main__":
    main()
