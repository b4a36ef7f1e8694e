"""SFRIK with timm: train a small vision transformer on your images, then load the weights into timm.

    pip install '.[timm]'    # in a clone of this repository
    python examples/timm_sfrik.py --data FOLDER    # FOLDER/<class>/<image>; without it, random images

The settings are common ones for a ViT. `sfrik pretrain --arch timm/NAME` does the same with checkpoints, logs and several GPUs.
"""

import argparse

import timm
import torch
import torchvision

from sfrik import SFRIK
from sfrik.networks import Encoder, build_projector
from sfrik.optim import AdamW, learning_rate, parameter_groups
from sfrik.views import build_views


def main():
    parser = argparse.ArgumentParser(description="SFRIK with timm.")
    parser.add_argument("--data", help="folder with a subfolder per class; labels are not used")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--weights", default="backbone.pth", help="file that the weights are saved to")
    options = parser.parse_args()

    views_of = build_views("simclr", size=options.size, dataset="image_folder").per_image  # an image -> two random views
    if options.data:
        dataset = torchvision.datasets.ImageFolder(options.data, views_of)
    else:
        dataset = torchvision.datasets.FakeData(4 * options.batch_size, (3, options.size, options.size), transform=views_of)
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True)

    backbone = timm.create_model(options.model, img_size=options.size, num_classes=0)  # no classifier: [n, num_features]
    encoder = Encoder(backbone, build_projector(backbone.num_features, "1024-1024"))
    criterion = SFRIK(dim=1024)
    optimizer = AdamW(parameter_groups(encoder, weight_decay=0.05), lr=0.0)  # no decay of biases, norms and position embeddings
    epochs = -(-options.steps // len(loader))

    for step in range(options.steps):
        if step % len(loader) == 0:
            batches = iter(loader)
        views, _ = next(batches)
        rate = learning_rate(step, len(loader), epochs, base_lr=5e-4, batch_size=options.batch_size, warmup_epochs=0.1 * epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        terms = criterion(encoder(views))
        optimizer.zero_grad()
        terms.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49 or step + 1 == options.steps:
            print(
                f"step {step + 1}: loss {terms.loss:.3f}", {name: round(value.item(), 4) for name, value in terms.parts.items()}
            )

    torch.save(backbone.state_dict(), options.weights)
    again = timm.create_model(options.model, img_size=options.size, num_classes=0)
    again.load_state_dict(torch.load(options.weights, weights_only=True))
    print(f"saved {options.weights} for timm.create_model({options.model!r}, img_size={options.size}, num_classes=0)")


if __name__ == "__main__":
    main()
