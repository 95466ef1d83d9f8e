"""What changes from frame to frame in the header of a tool, a bit each; `headers.write_headers` writes them."""

PATCH_IPV4 = 1  # total length, identification, checksum
PATCH_IPV6 = 2  # payload length
PATCH_UDP = 4  # length
PATCH_UDP_CHECKSUM = 8
PATCH_SOURCE_PORT = 16  # by flow
PATCH_SEQUENCE = 32  # 32 bits
PATCH_CHECKSUM = 64  # GRE
SHARE_BY_TOOL = 128  # one send worker takes all frames of the tool; else flows are spread
WINDOW_IP = 256  # the window begins at the IP header, and GRE says its version
PATCH_FLOW_ID = 512  # NVGRE: 8 bits of the flow hash
PATCH_ERSPAN = 1024  # truncated, and what a VLAN tag in the frame says
PATCH_TIMESTAMP = 2048  # ERSPAN III
PATCH_SUBHEADER = 4096  # its upper half, in the subheader
