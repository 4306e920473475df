"""Train a class-unconditional diffusion model of Fashion-MNIST (28x28) on a CPU.

    python training/fashion_mnist/train_generator.py --minutes 75 --threads 2 \
        --checkpoint /tmp/generator.pt --out src/uturn/assets/fashion_mnist/generator

The result is a diffusers folder (float16 weights) with the moving average of the weights. An
interrupted run is resumed from its checkpoint by the same command.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import data
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from uturn.core.files import whole_file, whole_folder


def build_model(channels: tuple[int, ...]) -> UNet2DModel:
    levels = len(channels)
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=channels,
        norm_num_groups=8,
        attention_head_dim=16,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
    )


def build_scheduler(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=prediction_type,
        clip_sample=True,
        timestep_spacing="linspace",
    )


def regression_target(scheduler: DDPMScheduler, clean, noise, timesteps):
    if scheduler.config.prediction_type == "epsilon":
        return noise
    return scheduler.get_velocity(clean, noise, timesteps)


def stratified_timesteps(
    count: int, num_train_timesteps: int, generator: torch.Generator
) -> torch.Tensor:
    """One uniform timestep from each of `count` equal strata: each has the same law as without
    strata; the loss is less noisy.
    """
    position = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (position * num_train_timesteps).long().clamp_(max=num_train_timesteps - 1)


@torch.inference_mode()
def clean_image_error(model, scheduler, images, bf16: bool) -> list[float]:
    """Mean squared error of the predicted clean image on fixed held-out images, at five fixed
    timesteps.

    It does not depend on the prediction type, so models of different types can be compared.
    """
    errors = []
    generator = torch.Generator().manual_seed(1)
    for timestep in (50, 200, 400, 700, 950):
        timesteps = torch.full((len(images),), timestep)
        noise = torch.randn(images.shape, generator=generator)
        noisy = scheduler.add_noise(images, noise, timesteps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = model(noisy, timesteps).sample.float()
        abar = scheduler.alphas_cumprod[timestep]
        if scheduler.config.prediction_type == "epsilon":
            predicted = (noisy - (1 - abar).sqrt() * output) / abar.sqrt()
        else:
            predicted = abar.sqrt() * noisy - (1 - abar).sqrt() * output
        errors.append((predicted.clamp(-1, 1) - images).square().mean().item())
    return errors


def save_pipeline(model: UNet2DModel, scheduler: DDPMScheduler, out: Path) -> None:
    """Write the model with float16 weights as a diffusers folder."""
    with whole_folder(out) as unfinished:
        DDPMPipeline(unet=copy.deepcopy(model).half().eval(), scheduler=scheduler).save_pretrained(
            unfinished
        )
        for weights in unfinished.rglob("*.safetensors"):
            weights.chmod(0o644)  # safetensors writes files that only their owner can read


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=None, help="folder with the idx.gz files")
    parser.add_argument("--out", required=True, type=Path, help="diffusers folder to write")
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="file to resume from and to write"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=75,
        help="wall time over which the learning rate falls to 0",
    )
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument(
        "--snapshot-minutes", type=float, default=10, help="wall time between writes of --out"
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=2,
        help="wall time between writes of --checkpoint",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument(
        "--prediction-type", choices=("epsilon", "v_prediction"), default="v_prediction"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument(
        "--flip", action="store_true", help="random left-right flips (changes the law of the data)"
    )
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train_images = data.to_signed(data.load("train", args.data)[0])
    held_out = data.to_signed(data.load("test", args.data)[0][:128])
    scheduler = build_scheduler(args.prediction_type)
    model = build_model(tuple(args.channels))
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2
    )
    generator = torch.Generator().manual_seed(args.seed)
    step, earlier_seconds = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step, earlier_seconds = state["step"], state["seconds"]
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters; starting at step {step}",
        flush=True,
    )

    started = last_snapshot = last_checkpoint = time.monotonic()

    def write(snapshot: bool) -> None:
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "step": step,
            "seconds": earlier_seconds + time.monotonic() - started,
        }
        with whole_file(args.checkpoint) as file:
            torch.save(state, file)
        if snapshot:
            save_pipeline(average, scheduler, args.out)
            print(f"step {step}: wrote {args.out}", flush=True)

    losses: list[float] = []
    while step < args.max_steps:
        progress = (earlier_seconds + time.monotonic() - started) / (60 * args.minutes)
        if progress >= 1:
            break
        learning_rate = (
            args.learning_rate * min(1, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        clean = train_images[
            torch.randint(len(train_images), (args.batch_size,), generator=generator)
        ]
        if args.flip:
            flipped = torch.rand(args.batch_size, 1, 1, 1, generator=generator) < 0.5
            clean = torch.where(flipped, clean.flip(-1), clean)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = stratified_timesteps(args.batch_size, 1000, generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = regression_target(scheduler, clean, noise, timesteps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            output = model(noisy, timesteps).sample
        loss = (output.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        # A smaller decay at first, so that the average forgets the random start within a few
        # hundred steps.
        decay = min(args.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)

        losses.append(loss.item())
        if step % 100 == 0:
            seconds = earlier_seconds + time.monotonic() - started
            line = (
                f"step {step} {seconds / 60:.1f} min lr {learning_rate:.2e} loss"
                f" {sum(losses) / len(losses):.4f}"
            )
            losses.clear()
            if step % 500 == 0 or step in (100, 200, 300, 400):
                errors = clean_image_error(average, scheduler, held_out, args.bf16)
                line += " held-out clean-image error " + " ".join(f"{e:.4f}" for e in errors)
            print(line, flush=True)
        now = time.monotonic()
        if now - last_checkpoint >= 60 * args.checkpoint_minutes:
            due = now - last_snapshot >= 60 * args.snapshot_minutes
            write(snapshot=due)
            last_checkpoint = now
            last_snapshot = now if due else last_snapshot
    write(snapshot=True)
    print("done", flush=True)


if __name__ == "__main__":
    main()
