# crowd.pl SOCKET COUNT SECONDS [trickle]: opens COUNT connections and holds them; with `trickle` each sends a byte a second of a
# request that never ends. Prints "held N" once they stand, and after SECONDS how many are still open.
use strict;
use warnings;
use IO::Socket::UNIX;
use IO::Select;

my ($socket, $count, $seconds, $trickle) = @ARGV;
$SIG{PIPE} = 'IGNORE';
$| = 1;
my @held;
for (1 .. $count) {
    my $stream = IO::Socket::UNIX->new(Peer => $socket, Timeout => 2) or last;
    syswrite $stream, 'G' if $trickle;
    push @held, $stream;
}
print 'held ', scalar @held, "\n";
for (1 .. $seconds) {
    sleep 1;
    if ($trickle) { defined $_ and syswrite $_, 'E' for @held }
}
my $open = 0;
for my $stream (@held) {
    my $select = IO::Select->new($stream);
    # What the agent has closed reads as ended at once.
    $open++ unless $select->can_read(0) && !sysread $stream, my $byte, 1;
}
print "open $open\n";
