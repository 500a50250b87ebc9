#!/usr/bin/env python3
"""Records what nova's own handler answers for two instances, one JSON object per line.

    python3 -m venv venv && venv/bin/pip install nova==34.0.0
    venv/bin/python record_nova.py > nova-34.0.0.jsonl

`recorded.rs` declares the same two instances and compares. A random seed is recorded as `SEED`. A
request on which nova's code fails is recorded with status 500.
"""

import base64
import json
from unittest import mock

import webob
from oslo_log import log

import nova.conf
from nova import context, objects
from nova.api.metadata import base, handler
from nova.network import model
from nova.objects import virt_device_metadata as device

VERSIONS = base.OPENSTACK_VERSIONS + ["latest"]
EC2_VERSIONS = base.VERSIONS + ["latest"]
OPENSTACK_FILES = [
    "meta_data.json", "user_data", "password", "vendor_data.json", "vendor_data2.json",
    "network_data.json", "version", "nothing", "meta_data.json/below",
]
EC2_FILES = [
    "ami-id", "ami-launch-index", "ami-manifest-path", "block-device-mapping",
    "block-device-mapping/ami", "block-device-mapping/root", "block-device-mapping/swap",
    "hostname", "instance-action", "instance-id", "instance-type", "kernel-id", "ramdisk-id",
    "local-hostname", "local-ipv4", "placement", "placement/availability-zone",
    "public-hostname", "public-ipv4", "public-keys", "public-keys/0",
    "public-keys/0/openssh-key", "public-keys/0=mykey", "public-keys/1", "reservation-id",
    "security-groups", "security-groups/default", "nothing", "hostname/below",
]
SHAPES = [
    "/", "//", "/ec2", "/ec2/", "/ec2/latest", "/openstack", "/openstack/", "//openstack",
    "///openstack", "/openstack/1999-01-01", "/openstack/content", "/openstack/content/0000",
    "/openstack/latest/content", "/2099-01-01", "/latest/dynamic", "/latest/api/token",
    "/latest/../openstack", "/../..", "/openstack/./latest//meta_data.json",
    "/%6fpenstack", "/latest%2fmeta-data", "/openstack?x=1", "/openstack;x", "/openstack%00",
    "/a%ffb", "/latest/user-data", "/latest/user-data/", "/latest/user-data/below",
    "/latest/user-data/below/that", "/ec2/latest/meta-data/hostname/",
]


def paths():
    yield from SHAPES
    for version in VERSIONS:
        yield f"/openstack/{version}"
        yield from (f"/openstack/{version}/{name}" for name in OPENSTACK_FILES)
    for version in EC2_VERSIONS:
        yield f"/{version}"
        yield f"/{version}/meta-data/"
    yield from (f"/latest/meta-data/{name}" for name in EC2_FILES)
    yield from (f"/1.0/meta-data/{name}" for name in EC2_FILES)


def instance(full):
    key = "ssh-ed25519 AAAAC3Nz user@host"
    made = objects.Instance(
        context=context.get_admin_context(),
        id=1,
        user_id="user",
        uuid="b65cee2f-8c69-4aeb-be2f-f79742548fc2",
        project_id="0123456789abcdef0123456789abcdef",
        key_name="mykey" if full else None,
        key_data=key if full else None,
        host="host",
        launch_index=3 if full else 0,
        reservation_id="r-4x9z1k2m",
        user_data=base64.b64encode(b"#cloud-config\n{}\n").decode() if full else None,
        image_ref="image",
        kernel_id=None,
        ramdisk_id=None,
        vcpus=1,
        root_device_name="/dev/vda",
        hostname="web-1",
        display_name="web-1",
        metadata={"role": "web", "owner": "Zo\u00eb \x7f"} if full else {},
        device_metadata=devices() if full else None,
        default_ephemeral_device=None,
        default_swap_device=None,
        system_metadata={},
        availability_zone="nova",
        numa_topology=None,
    )
    made.security_groups = objects.SecurityGroupList()
    pairs = [objects.KeyPair(name="mykey", type="ssh", public_key=key)] if full else []
    made.keypairs = objects.KeyPairList(objects=pairs)
    made.info_cache = objects.InstanceInfoCache(
        context=made._context, instance_uuid=made.uuid, network_info=model.NetworkInfo([])
    )
    made.flavor = objects.Flavor(name="m1.small")
    made.ec2_ids = objects.EC2Ids(
        instance_id="i-0000002a",
        ami_id="ami-00000001",
        kernel_id="aki-00000002" if full else None,
        ramdisk_id="ari-00000003" if full else None,
    )
    return made


def devices():
    def nic(last, address, **more):
        bus = device.PCIDeviceBus(address=address)
        return device.NetworkInterfaceMetadata(bus=bus, mac=f"fa:16:3e:00:00:{last}", **more)

    return objects.InstanceDeviceMetadata(devices=[
        nic("01", "0000:00:02.0", vlan=1000, tags=["foo"], vf_trusted=True),
        nic("02", "0000:00:03.0", vlan=7),
        nic("03", "0000:00:05.0"),
        device.DiskMetadata(
            bus=device.SCSIDeviceBus(address="0:0:0:1"), serial="disk-vol-227",
            path="/dev/sda", tags=["baz"],
        ),
        device.DiskMetadata(bus=device.USBDeviceBus()),
        device.ShareMetadata(share_id="e4c9c7b4-7bb7-4d0a-9d7d-1c7f3a4a3b11", tag="data"),
    ])


def metadata(full):
    groups = [{"name": "default"}] + ([{"name": "web"}] if full else [])
    mapping = {"ami": "vda", "root": "/dev/vda"}
    with mock.patch.object(base, "_format_instance_mapping", lambda _: mapping), \
         mock.patch.object(base.security_group_api, "get_instance_security_groups",
                           lambda *_: groups):
        made = base.InstanceMetadata(
            instance(full), address="10.0.0.5",
            network_metadata={"links": [], "networks": [], "services": []},
        )
    if full:
        made.vendordata_providers["StaticJSON"]._data = {"motd": "hello", "n": [1, 2.5, None]}
    return made


def ask(app, made, path):
    request = webob.Request.blank(path, headers={"Accept": "*/*"})
    try:
        with mock.patch.object(app, "get_metadata_by_remote_address", lambda _: made), \
             mock.patch("os.urandom", bytes):
            answer = request.get_response(app)
    except (TypeError, UnicodeDecodeError):
        return {"status": 500}
    seed = base64.b64encode(bytes(512)).decode()
    return {
        "status": answer.status_int,
        "type": answer.headers["Content-Type"],
        "body": answer.body.decode().replace(seed, "SEED"),
    }


def main():
    objects.register_all()
    log.register_options(nova.conf.CONF)
    nova.conf.CONF([], project="nova", default_config_files=[])
    app = handler.MetadataRequestHandler()
    for name in ("full", "least"):
        made = metadata(name == "full")
        for path in paths():
            print(json.dumps({"instance": name, "path": path, **ask(app, made, path)}))


main()
