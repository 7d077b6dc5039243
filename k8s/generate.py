"""Write each overlay's `serve-config.yaml`: the RayService patch whose `serveConfigV2` is a config, word for word.

Run `python k8s/generate.py` after a change in deployments/configs/; a test compares the two.
"""

from pathlib import Path

K8S = Path(__file__).parent
CONFIGS = K8S.parent / "deployments" / "configs"
OVERLAYS = ("cpu-small", "gpu", "spike")  # each named like its config

_HEAD = """\
# Written by k8s/generate.py from deployments/configs/{name}.yaml. Edit that file instead.
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: specserve
spec:
  serveConfigV2: |
"""


def patch(name: str, config: str) -> str:
    """The patch that embeds a config's text."""
    lines = (f"    {line}" if line else "" for line in config.splitlines())
    return _HEAD.format(name=name) + "\n".join(lines) + "\n"


def main() -> None:
    """Write them all."""
    for name in OVERLAYS:
        text = (CONFIGS / f"{name}.yaml").read_text()
        (K8S / "overlays" / name / "serve-config.yaml").write_text(patch(name, text))


if __name__ == "__main__":
    main()
