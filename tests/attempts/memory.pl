# memory.pl SOCKET MIB SECONDS: learns from the public counters when the agent looks, and has memory only between its looks.
# Prints the thousandths of the time for which it had it.
use strict;
use warnings;
use IO::Socket::UNIX;

my ($socket, $mib, $seconds) = @ARGV;

sub now { open my $in, '<', '/proc/uptime' or exit 2; (split ' ', <$in>)[0] }
sub pause { select undef, undef, undef, $_[0] if $_[0] > 0 }

sub ticks {
    my $stream = IO::Socket::UNIX->new(Peer => $socket) or return;
    print $stream "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    local $/;
    my $text = <$stream> // '';
    return $text =~ /meterd_ticks_total (\d+)/ ? $1 : undef;
}

# The earliest instant of a second at which a tick was ever seen: the looks come at it, or up to three tenths later.
my ($before, $phase) = (ticks(), 1);
my @seen;
my $until = now() + 7;
while (now() < $until) {
    pause(0.03);
    my $count = ticks();
    next unless defined $count && defined $before;
    push @seen, now() - int now() if $before < $count;
    $before = $count;
}
# On a circle: the start of the shortest arc that holds them all.
@seen = sort { $a <=> $b } @seen;
my $gap = 0;
for my $nth (0 .. $#seen) {
    my $last = $nth ? $seen[$nth - 1] : $seen[-1] - 1;
    ($gap, $phase) = ($seen[$nth] - $last, $seen[$nth]) if $gap < $seen[$nth] - $last;
}

my ($had, $began) = (0, now());
while (now() - $began < $seconds) {
    my $at = now() - $phase;
    my $from = int($at + 2) - 2 + 0.42;
    $from += 1 if $from < $at;
    pause($from - $at);
    my $got = now();
    {
        my $memory = "\1" x ($mib << 20);
        my $rest = $phase + $from + 0.43 - now();
        pause($rest);
        undef $memory;
    }
    $had += now() - $got;
}
print int(1000 * $had / (now() - $began)), "\n";
