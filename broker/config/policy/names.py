"""Names that stand for numbers. Tables, no look-ups: a policy means the same on every machine.

Services as Debian's /etc/services has them (libpcap asks that file, so ``port https`` is TCP and UDP and ``port http`` TCP only).
"""

from __future__ import annotations

_BOTH = """
echo=7 discard=9 sink=9 null=9 daytime=13 chargen=19 ttytst=19 source=19 time=37 timserver=37 tacacs=49 domain=53 kerberos=88
kerberos5=88 krb5=88 kerberos-sec=88 sunrpc=111 portmapper=111 snmp=161 snmp-trap=162 snmptrap=162 ldap=389 https=443 kpasswd=464
rtsp=554 ldaps=636 openvpn=1194 radius=1812 radius-acct=1813 radacct=1813 nfs=2049 nut=3493 sip=5060
"""
_TCP = """
tcpmux=1 systat=11 users=11 netstat=15 qotd=17 quote=17 ftp-data=20 ftp=21 ssh=22 telnet=23 smtp=25 mail=25 whois=43 nicname=43
gopher=70 finger=79 http=80 www=80 pop3=110 pop-3=110 auth=113 authentication=113 tap=113 ident=113 nntp=119 readnews=119 untp=119
epmap=135 loc-srv=135 netbios-ssn=139 imap2=143 imap=143 bgp=179 microsoft-ds=445 submissions=465 ssmtp=465 smtps=465 urd=465
exec=512 login=513 shell=514 cmd=514 printer=515 spooler=515 uucp=540 uucpd=540 klogin=543 kshell=544 krcmd=544 nntps=563 snntp=563
submission=587 ipp=631 rsync=873 ftps-data=989 ftps=990 telnets=992 imaps=993 pop3s=995 socks=1080 ms-sql-s=1433 mysql=3306
ms-wbt-server=3389 svn=3690 subversion=3690 sip-tls=5061 xmpp-client=5222 jabber-client=5222 xmpp-server=5269 jabber-server=5269
postgresql=5432 postgres=5432 amqps=5671 amqp=5672 x11=6000 x11-0=6000 redis=6379 http-alt=8080 webcache=8080 git=9418
zabbix-agent=10050 zabbix-trapper=10051
"""
_UDP = """
bootps=67 bootpc=68 tftp=69 ntp=123 netbios-ns=137 netbios-dgm=138 ptp-event=319 ptp-general=320 isakmp=500 biff=512 comsat=512
who=513 whod=513 talk=517 route=520 router=520 routed=520 dhcpv6-client=546 dhcpv6-server=547 ms-sql-m=1434 l2f=1701 l2tp=1701
ipsec-nat-t=4500 iax=4569 mdns=5353
"""
_PROTOCOLS = """
ip=0 hopopt=0 icmp=1 igmp=2 ggp=3 ipencap=4 st=5 tcp=6 egp=8 igp=9 pup=12 udp=17 hmp=20 xns-idp=22 rdp=27 iso-tp4=29 dccp=33 xtp=36
ddp=37 idpr-cmtp=38 ipv6=41 ipv6-route=43 ipv6-frag=44 idrp=45 rsvp=46 gre=47 esp=50 ah=51 skip=57 ipv6-icmp=58 ipv6-nonxt=59
ipv6-opts=60 rspf=73 vmtp=81 eigrp=88 ospf=89 ipip=94 etherip=97 encap=98 pim=103 ipcomp=108 vrrp=112 l2tp=115 isis=124 sctp=132
fc=133 mobility-header=135 udplite=136 mpls-in-ip=137 manet=138 hip=139 shim6=140 wesp=141 rohc=142
"""
_CONSTANTS = """
icmptype=0 icmpcode=1 icmp-echoreply=0 icmp-unreach=3 icmp-sourcequench=4 icmp-redirect=5 icmp-echo=8 icmp-routeradvert=9
icmp-routersolicit=10 icmp-timxceed=11 icmp-paramprob=12 icmp-tstamp=13 icmp-tstampreply=14 icmp-ireq=15 icmp-ireqreply=16
icmp-maskreq=17 icmp-maskreply=18
icmp6type=0 icmp6code=1 icmp6-destinationunreach=1 icmp6-packettoobig=2 icmp6-timeexceeded=3 icmp6-parameterproblem=4 icmp6-echo=128
icmp6-echoreply=129 icmp6-multicastlistenerquery=130 icmp6-multicastlistenerreportv1=131 icmp6-multicastlistenerdone=132
icmp6-routersolicit=133 icmp6-routeradvert=134 icmp6-neighborsolicit=135 icmp6-neighboradvert=136 icmp6-redirect=137
icmp6-routerrenum=138 icmp6-nodeinformationquery=139 icmp6-nodeinformationresponse=140 icmp6-ineighbordiscoverysolicit=141
icmp6-ineighbordiscoveryadvert=142 icmp6-multicastlistenerreportv2=143 icmp6-homeagentdiscoveryrequest=144
icmp6-homeagentdiscoveryreply=145 icmp6-mobileprefixsolicit=146 icmp6-mobileprefixadvert=147 icmp6-certpathsolicit=148
icmp6-certpathadvert=149 icmp6-multicastrouteradvert=151 icmp6-multicastroutersolicit=152 icmp6-multicastrouterterm=153
tcpflags=13 tcp-fin=0x01 tcp-syn=0x02 tcp-rst=0x04 tcp-push=0x08 tcp-ack=0x10 tcp-urg=0x20 tcp-ece=0x40 tcp-cwr=0x80
"""
_LLC_SUPERVISORY = "rr=0x01 rnr=0x05 rej=0x09"
_LLC_UNNUMBERED = "ui=0x03 ua=0x63 disc=0x43 dm=0x0f sabme=0x6f test=0xe3 xid=0xaf frmr=0x87"
_ETHERTYPES = """
ip=0x0800 arp=0x0806 rarp=0x8035 ip6=0x86dd decnet=0x6003 lat=0x6004 sca=0x6007 mopdl=0x6001 moprc=0x6002 loopback=0x9000
atalk=0x809b aarp=0x80f3 iso=0xfe stp=0x42 netbeui=0xf0 ipx=0xe0
"""


def _table(text: str) -> dict[str, int]:
    return {name: int(number, 0) for name, _, number in (pair.partition("=") for pair in text.split())}


TCP, UDP, SCTP = 1, 2, 4
"""Bits of the protocols that have ports."""

ANY_PORT_PROTOCOL = TCP | UDP | SCTP

SERVICES: dict[str, tuple[int, int]] = {
    **{name: (port, ANY_PORT_PROTOCOL) for name, port in _table(_BOTH).items()},
    **{name: (port, TCP) for name, port in _table(_TCP).items()},
    **{name: (port, UDP) for name, port in _table(_UDP).items()},
    "syslog": (514, ANY_PORT_PROTOCOL),  # UDP's own name and an alias of TCP's `shell`
}
"""Name: (port, bits). Both TCP and UDP know it: SCTP too, as libpcap has it."""

PROTOCOLS: dict[str, int] = _table(_PROTOCOLS)

ETHERTYPES: dict[str, int] = _table(_ETHERTYPES)
"""What ``ether proto \\NAME`` knows. Up to 1,500 it is an LLC service access point."""

OSI_PROTOCOLS = {"clnp": 0x81, "esis": 0x82, "isis": 0x83}
"""Network layer protocol identifiers, ISO/IEC TR 9577."""

CONSTANTS: dict[str, int] = _table(_CONSTANTS)
"""Offsets and values for byte access: ``tcp[tcpflags] & tcp-syn != 0``."""

LLC_SUPERVISORY: dict[str, int] = _table(_LLC_SUPERVISORY)
LLC_UNNUMBERED: dict[str, int] = _table(_LLC_UNNUMBERED)
"""The control byte of an IEEE 802.2 frame, without poll/final."""
