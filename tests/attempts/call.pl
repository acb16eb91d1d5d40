# call.pl ADDRESS METHOD PATH [BODY]: one HTTP call over a Unix socket (a path) or TCP (host:port); prints status and body.
use strict;
use warnings;
use IO::Socket::INET;
use IO::Socket::UNIX;

my ($address, $method, $path, $body) = @ARGV;
$body = '' unless defined $body;
my $stream = $address =~ m{^/} ? IO::Socket::UNIX->new(Peer => $address) : IO::Socket::INET->new(PeerAddr => $address);
unless ($stream) { print "000 $!\n"; exit 1 }
$SIG{PIPE} = 'IGNORE';
print $stream "$method $path HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: " . length($body) . "\r\n\r\n$body";
local $/;
my $answer = <$stream> // '';
my ($status) = $answer =~ m{^HTTP/1.1 (\d+)};
my (undef, $text) = split /\r\n\r\n/, $answer, 2;
print +($status // '000'), ' ', $text // '', "\n";
