# impostor.pl SOCKET FILE: takes the agent's socket away, listens in its place, and writes down what the first caller says.
use strict;
use warnings;
use IO::Socket::UNIX;

my ($socket, $file) = @ARGV;
rename $socket, "$socket.old" or exit 1;
my $listener = IO::Socket::UNIX->new(Local => $socket, Listen => 1) or exit 1;
chmod 0666, $socket;
$| = 1;
print "listening\n";
local $SIG{ALRM} = sub { exit 1 };
alarm 30;
my $caller = $listener->accept or exit 1;
sysread $caller, my $said, 65536;
open my $out, '>', $file or exit 1;
print $out $said;
close $out;
print $caller "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
