"""SFRIK with lightly: its augmentations, projection head and data loader as in its SimCLR example, and SFRIK as the criterion.

    pip install . lightly    # in a clone of this repository
    python examples/lightly_sfrik.py --data FOLDER    # FOLDER/<class>/<image>; without it, random images

Only the two lines with `criterion` differ: SFRIK is given the width of the head, and needs no `gather_distributed`.
"""

import argparse

import torch
import torchvision
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import nn

from sfrik import SFRIK


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.Flatten())
        self.projection_head = SimCLRProjectionHead(input_dim=512, hidden_dim=512, output_dim=512)

    def forward(self, x):
        return self.projection_head(self.backbone(x))


def main():
    parser = argparse.ArgumentParser(description="SFRIK with lightly.")
    parser.add_argument("--data", help="folder with a subfolder per class; labels are not used")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()

    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
    if options.data:
        dataset = torchvision.datasets.ImageFolder(options.data, transform=transform)
    else:
        dataset = torchvision.datasets.FakeData(4 * options.batch_size, (3, 32, 32), transform=transform)
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True)

    model = Model()
    criterion = SFRIK(dim=512)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    step = 0
    while step < options.steps:
        for views, _ in loader:
            terms = criterion(model(views[0]), model(views[1]))
            optimizer.zero_grad()
            terms.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == options.steps:
                print(
                    f"step {step}: loss {terms.loss:.3f}", {name: round(value.item(), 4) for name, value in terms.parts.items()}
                )
            if step == options.steps:
                break


if __name__ == "__main__":
    main()
