"""A run's model in PyTorch, by way of train_gpt export, and what is measured there."""
import subprocess
import tempfile


def load(args, run):
    """The model of a run that was kept (runs.Run), in eval mode."""
    import transformers
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([args.program, "export", args.work / run.key / "model.bin", f"{folder}/hf"], check=True, capture_output=True)
        return transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/hf", trust_remote_code=True).eval()


def divergence(start, now, rows):
    """Mean over the tokens rows [B, T] of KL(start || now), in nats."""
    import torch
    total = 0.0
    for some in rows.split(8):
        with torch.no_grad():
            p, q = (model(some).logits.log_softmax(-1) for model in (start, now))
        total += torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True).item()
    return total / rows.numel()


def loss(model, rows):
    """Mean over the tokens of rows [B, T] that have one before them, in nats."""
    import torch
    total = 0.0
    for some in rows.split(8):
        with torch.no_grad():
            logits = model(some).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum").item()
    return total / rows[:, 1:].numel()


def clamped(model, rows):
    """Shares of the numbers that the bounds of a model's sites clip on the tokens rows [B, T]: (in first positions, behind them)."""
    import torch
    clipped, numbers = [0, 0], [0, 0]

    def count(site, inputs, _):
        u = inputs[0] - inputs[0].mean(-1, keepdim=True) if site.centered else inputs[0]
        outside = (site.taper_scale * site.row_scaled(u)).abs() >= site.bound
        for i, part in enumerate((outside[:, :1], outside[:, 1:])):
            clipped[i] += part.sum().item()
            numbers[i] += part.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules() if hasattr(module, "taper_scale")]
    with torch.no_grad():
        for some in rows.split(8):
            model(some)
    for hook in hooks:
        hook.remove()
    return tuple(c / max(n, 1) for c, n in zip(clipped, numbers, strict=True))
