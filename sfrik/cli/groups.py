"""What the help shows: groups of commands, examples, groups of settings, and which settings only `--help-all` lists."""

from __future__ import annotations

__all__ = ["COMMANDS", "EXAMPLES", "SETTINGS", "TOP"]

COMMANDS = {
    "train": ("pretrain", "memory"),
    "evaluate": ("evaluate", "knn-eval", "logistic-regression", "transfer", "extract-features"),
    "reproduce tables": ("table", "run", "status", "compare", "chapters", "publish"),
    "inspect": ("recipes", "diagnose", "env", "completion"),
}

# Title of a group -> its settings in --help, and its further settings in --help-all. A setting that is named in no group is a
# further one of the group of its prefix (SFRIK for sfrik_...), or of the last group.
SETTINGS = {
    "run": ("exp_dir seed device", ""),
    "data": (
        "dataset data_dir subset size image_dir val_dataset val_subset extraction_dir batch_size",
        "workers skip_broken",
    ),
    "views": (
        "augmentations",
        "input_pipeline min_crop_scale reg_small num_img_crops image_crop_size num_img_patches img_patch_size nmb_crops "
        "size_crops min_scale_crops max_scale_crops general_indices",
    ),
    "network": ("arch mlp stem pretrained ckp_path", "arch_args precision compile micro_batch"),
    "protocol": (
        "weights train_percent label_list head_norm only_inference nb_knn temperature solver target target_dir",
        "choice",
    ),
    "optimizer": (
        "epochs base_lr wd lr_head lr_backbone weight_decay optimizer",
        "warmup_epochs lr_sweep inverse_penalties svm_costs momentum trust_coefficient betas eps nesterov clip_grad",
    ),
    "objective": ("ssl_method", ""),
    "SFRIK": ("sfrik_weights sfrik_trade_off sfrik_sim_coeff sfrik_mmd_coeff", ""),
    "AUH": ("auh_sim_coeff auh_unif_coeff", ""),
    "SimCLR": ("simclr_temp", ""),
    "VICReg": ("vicreg_sim_coeff vicreg_std_coeff vicreg_cov_coeff", ""),
    "SIGReg": ("sigreg_weight", ""),
    "logs and checkpoints": ("", "log_every knn_every loggers checkpoint_minutes"),
}

TOP = (
    "sfrik pretrain --recipe digits/sfrik_l3_q512",
    "sfrik table table1 --profile digits",
    "sfrik pretrain --help",
)
EXAMPLES = {
    "pretrain": (
        "sfrik pretrain --recipe digits/sfrik_l3_q512",
        "sfrik pretrain --recipe digits/vicreg_q512 --epochs 30 --exp-dir my/run",
        "sfrik pretrain --dataset image_folder --data-dir photos --dry-run",
    ),
    "memory": (
        "sfrik memory --recipe paper/in1k_r50_sfrik_l3_q32768",
        "sfrik memory --recipe paper/in1k_r50_vicreg_q8192 --nproc-per-node 8",
        "sfrik memory --arch resnet50 --mlp 8192-8192-8192 --batch-size 1024",
    ),
    "evaluate": (
        "sfrik evaluate --recipe digits/sfrik_l3_q512",
        "sfrik evaluate --recipe digits/sfrik_l3_q512 --train-percent 10",
        "sfrik evaluate --pretrained backbone.pth --arch resnet50 --data-dir imagenet",
    ),
    "extract-features": (
        "sfrik extract-features --recipe digits/sfrik_l3_q512",
        "sfrik extract-features --pretrained backbone.pth --arch resnet50 --data-dir imagenet --exp-dir features",
        "sfrik extract-features --recipe photos/sfrik_l3_q512 --image-dir pictures",
    ),
    "knn-eval": (
        "sfrik knn-eval --recipe digits/sfrik_l3_q512",
        "sfrik knn-eval --recipe digits/sfrik_l3_q512 --nb-knn 5 20",
        "sfrik knn-eval --dataset imagenet --extraction-dir features",
    ),
    "logistic-regression": (
        "sfrik logistic-regression --recipe digits/sfrik_l3_q512",
        "sfrik logistic-regression --recipe digits/sfrik_l3_q512 --solver sgd",
        "sfrik logistic-regression --dataset imagenet --extraction-dir features",
    ),
    "transfer": (
        "sfrik transfer --recipe digits/sfrik_l3_q512",
        "sfrik transfer --pretrained backbone.pth --arch resnet50 --target voc07 --target-dir VOCdevkit",
    ),
    "table": (
        "sfrik table table1",
        "sfrik table table1 --profile photos --seeds 3 --dry-run",
        "sfrik table table4 --profile paper --data-dir imagenet --launch slurm --nodes 2 --gpus 4",
    ),
    "run": (
        "sfrik run --recipe digits/sfrik_l3_q512",
        "sfrik run --recipe digits/sfrik_l3_q512 --seed 1 --stages pretrain knn",
    ),
    "status": ("sfrik status", "sfrik status table1 --profile photos --seeds 3"),
    "compare": ("sfrik compare", "sfrik compare table1", "sfrik compare runs other/runs --profile photos"),
    "chapters": ("sfrik chapters", "sfrik chapters --profile photos --data-dir photos"),
    "publish": ("sfrik publish table1 --profile digits",),
    "recipes": ("sfrik recipes", "sfrik recipes digits", "sfrik recipes digits/sfrik_l3_q512"),
    "diagnose": ("sfrik diagnose digits/sfrik_l3_q512", "sfrik diagnose my/run --figure collapse.png"),
    "env": ("sfrik env",),
    "completion": ('eval "$(sfrik completion bash)"', "sfrik completion zsh > ~/.zfunc/_sfrik"),
}
