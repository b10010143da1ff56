"""Train on your own photos from Python: python examples/train_on_my_photos.py DATA OUTPUT [KEY=VALUE ...].

DATA is a folder or file as `showtell data check` reads it. The same command again continues where it stopped.
"""

import sys

import showtell

data, output = sys.argv[1:3]
settings = {key: float(value) if "." in value else int(value) for key, value in (a.split("=") for a in sys.argv[3:])}
result = showtell.train(data, output, overrides=settings)
captioner = showtell.Captioner.from_pretrained(result.output)
photo = showtell.read_dataset(data).split("val")[0]
print(f"{photo.id}: {captioner.caption(photo.photo())}")
