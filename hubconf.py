"""Entry points of torch.hub: `torch.hub.load(repository, "resnet50_sfrik_200ep")`."""

dependencies = ["torch", "torchvision", "safetensors", "numpy", "pydantic", "filelock"]


def resnet50_sfrik_200ep(progress=True):
    """The authors' ResNet-50, pretrained with SFRIK on ImageNet for 200 epochs: images [n, 3, h, w] -> features [n, 2048]."""
    from sfrik.networks import pretrained

    return pretrained("resnet50-sfrik-200ep", progress)
