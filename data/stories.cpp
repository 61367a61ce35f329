// The stories of stories.h, in three parts: tables of words, plots, and the teller that turns a plot into a
// story.
//
// A template is plain text with two kinds of marks:
//     [red|blue|]     one of the alternatives, each as likely as the others; they nest, and may be empty
//     {toy}           what the plot's cast bound to `toy`, or the phrase of that name, expanded in turn
//     {toy.where}     another column of the table row that was bound to `toy`
//     {a toy}         the same with "a" or "an" before it
//     {Toy}           the same with a capital letter; {A toy} works too
// Always bound: {hero} {he} {his} {him} {kind} ("girl", "fox") {land} (where the hero lives); {friend}
// {friend.he} {friend.his} {friend.him} {friend.kind}; {pal} introduces the friend ("her friend Tom", "Rusty
// the fox"). One of hero and friend is a she and the other a he, and nobody else gets such a pronoun, so
// "she" is never in doubt.
//
// To add a plot: append it to `plots`; name the tables it draws from in its cast, as `table` or
// `variable=table` (two draws from one table never give the same row); let every event have its cause; close
// with a feeling or a lesson.
#include "data/stories.h"

#include <algorithm>
#include <map>
#include <string_view>

#include "runtime/error.h"

namespace tapernorm {

namespace {

// -----------------------------------------------------------------------------------------------------------
// Words. A row has the columns that the header names, separated by '|'; a column may be a template itself.

struct Table {
    std::string_view name, columns;
    std::vector<std::string_view> rows;
};

const std::vector<Table> tables = {
    {"girl", "name", {"Lily", "Mia", "Anna", "Emma", "Rosie", "Sara", "Nora", "Ella", "Zoe", "Kate", "Lucy", "Amy"}},
    {"boy", "name", {"Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Tim", "Finn", "Noah", "Adam", "Luke", "Owen"}},
    {"she-animal", "name", {"Daisy", "Hazel", "Poppy", "Honey", "Ruby", "Willow", "Luna", "Coco"}},
    {"he-animal", "name", {"Rusty", "Pip", "Bruno", "Teddy", "Bingo", "Rocky", "Toby", "Hugo"}},
    {"animal", "kind", {"fox", "rabbit", "bear", "squirrel", "deer", "otter", "pig", "goat"}},
    {"child-land", "land", {"in a small town", "near the sea", "on a farm", "in a house on a hill", "in a big city"}},
    {"animal-land", "land", {"in a green forest", "near a river", "near an old tree", "on a green hill"}},
    {"color", "color", {"red", "blue", "green", "yellow", "orange", "white", "brown", "pink"}},
    {"toy", "toy", {"ball", "boat", "car", "drum", "doll", "train", "robot", "toy bear", "toy duck"}},
    {"junk", "junk", {"sock", "apple", "orange"}},
    {"spot",
     "spot",
     {"under the bed", "behind the door", "under the table", "in the kitchen", "behind the sofa", "in the garden",
      "in the big box"}},
    {"food",
     "food",
     {"apple", "orange", "pear", "cookie", "sandwich", "pancake", "honey cake", "banana", "apple pie",
      "piece of cake"}},
    {"seat", "seat", {"under a tree", "by the pond", "on a bench", "in the grass", "on a big rock"}},
    {"loss",
     "loss",
     {"I dropped my {food2} in the mud", "A bird took my {food2}", "My {food2} fell into the water",
      "I left my lunch at home"}},
    {"elder", "elder", {"mom", "dad", "grandma", "grandpa"}},

    {"thing",
     "thing|how",
     {"kite|The wind pulled the kite into a tall tree", "kite|The string broke, and the kite flew into a tall tree",
      "ball|{He} threw the ball too high, and it landed in a tall tree",
      "ball|{He} kicked the ball, and it flew up into a tall tree", "hat|The wind blew the hat up into a tall tree",
      "paper plane|{He} threw the paper plane, and it landed in a tall tree"}},
    {"helper",
     "helper|first|way|gift",
     {"the bird|a little bird|flew up and pulled the {thing} down|some bread",
      "the squirrel|a squirrel|ran up the tree and pushed the {thing} down|an apple",
      "the cat|an old cat|climbed up the tree and pushed the {thing} down|some milk",
      "the owl|an owl|flew up and brought the {thing} down|some cake",
      "{friend}|{pal}|stood on a box and got the {thing} down with a stick|a big hug"}},
    {"pet",
     "pet|where|trouble|fix|after",
     {"bird|on the ground|It was cold|put the bird in {his} warm hat|The bird was soon warm and sang a sweet "
      "song",
      "kitten|under a bush|It was thin and hungry|gave the kitten some warm milk|The kitten was happy and "
      "fell asleep",
      "puppy|under a bench|It had a thorn in its foot|pulled out the thorn|The puppy jumped up and licked "
      "{his} hand",
      "turtle|on the path|It was on its back|turned the turtle over|The turtle walked slowly to the pond",
      "duck|by the path|It could not find its mom|took the duck to the pond|Its mom was there, and they "
      "were both "
      "glad",
      "frog|in a bucket|It could not jump out|put the bucket on its side|The frog jumped out into the grass",
      "bee|on a flower|It was too tired to fly|gave the bee some honey|The bee ate the honey and flew away",
      "rabbit|under a tree|It was cold and alone|took the rabbit home and gave it some bread|The rabbit ate "
      "the bread "
      "and jumped around"}},
    {"accident",
     "did|hit|rule",
     {"threw a ball in the house|The ball hit|threw balls only outside",
      "ran around the table|{His} arm hit|walked slowly in the house",
      "danced on a chair|{His} foot hit|danced only on the floor",
      "jumped on the sofa|{His} foot hit|jumped only in the garden",
      "played with a long stick in the house|The stick hit|left sticks outside"}},
    {"pot", "pot", {"cup", "vase", "plate", "bowl", "lamp"}},
    {"noise",
     "noise|where|source",
     {"Tap, tap, tap|window|a tree in the wind", "Scratch, scratch|door|a kitten that wanted to come in",
      "Hoo, hoo|window|an owl in the tree", "Squeak, squeak|kitchen|a mouse with some cheese",
      "Bump, bump|door|the wind", "Crunch, crunch|kitchen|the dog with a cookie"}},
    {"plan",
     "plan",
     {"have a picnic", "go to the beach", "fly a kite", "ride bikes", "play in the park", "pick flowers"}},
    {"idea",
     "idea|past|detail",
     {"build a castle with pillows|built a castle with pillows|The castle was big and soft",
      "paint a big picture|painted a big picture|{hero} painted {a color} fish, and {friend} painted the sea",
      "bake a cake|baked a cake|The kitchen was warm and smelled sweet",
      "sing and dance|sang and danced|Even the cat danced with them",
      "tell stories|told stories|{friend} told one about a brave bear",
      "make paper boats|made paper boats|{hero} made {a color} one, and {friend} made a big one",
      "play hide and seek|played hide and seek|{hero} hid [behind the sofa|under the bed|behind the door]"}},
    {"skill",
     "skill|fail|did",
     {"ride a bike|{He} got on the bike, but {he} fell into the grass|rode the bike all the way home",
      "swim|{He} jumped into the water, but it got in {his} nose|swam all the way to the other side",
      "whistle|{He} tried and tried, but no sound came out|whistled a happy song",
      "draw a horse|{He} tried, but it looked like a potato|drew a horse with a long tail",
      "bake bread|{He} tried, but the bread was as hard as a rock|baked soft and warm bread",
      "dance|{He} tried, but {he} fell down|danced in a big circle"}},
    {"plant",
     "plant|end",
     {"tall sunflower|It was taller than {hero}", "round yellow pumpkin|{hero} and {his} {elder} made hot soup with it",
      "big orange carrot|{hero} gave half of it to a hungry rabbit",
      "sweet red strawberry|{hero} gave half of it to {his} {elder}",
      "white rose|{hero} put it in a vase by the window"}},
    {"craft",
     "craft|from",
     {"card|paper and paint", "crown|leaves and flowers", "little boat|wood and string", "paper bird|{color} paper",
      "kite|paper and string", "doll|an old sock"}},
    {"load",
     "load|where|result",
     {"log|a big log on the path home|The log rolled away",
      "rock|a big rock in front of {his} door|The rock rolled away",
      "cart|an old cart in the mud|The cart came out of the mud",
      "pumpkin|a big pumpkin and wanted to take it home|The pumpkin rolled all the way home"}},
    {"tiny", "tiny", {"ant", "mouse", "bee", "frog"}},
    {"lure", "lure", {"butterfly", "bird", "leaf"}},
    {"guide", "guide", {"old owl", "old turtle", "bird", "mouse"}},
    {"way", "way", {"river", "white rocks", "big star", "moon"}},
    {"game",
     "game|past",
     {"play ball|played ball", "play tag|played tag", "fly my kite|flew the kite",
      "build a castle in the sand|built a castle in the sand", "play hide and seek|played hide and seek",
      "paint with me|painted"}},
    {"goal", "goal", {"old oak tree", "big rock", "bridge", "river", "pond"}},
};

struct Phrase {
    std::string_view name, text;
};

const std::vector<Phrase> phrases = {
    {"opening",
     "[[Once upon a time,|Once] there was a {trait} {kind} named {hero}.|"
     "Once upon a time, a {trait} {kind} named {hero} lived {land}.|"
     "{hero} was a {trait} {kind} who lived {land}.]"},
    {"trait", "[little|kind|happy|young|small|clever|gentle|quiet|funny]"},
    {"day", "one [day|morning|afternoon]"},
    {"sunny", "one [sunny|warm|bright] [day|morning|afternoon]"},
    {"ask", "[What is wrong|What happened]"},
    {"calm", "[Do not worry|Do not be sad|It is all right]"},
    {"thanks", "Thank you[| so much]!"},
    {"from-then", "[From that day on|After that day|From then on]"},
};

// -----------------------------------------------------------------------------------------------------------
// Plots. A line break in a text counts as a space, a blank line begins a paragraph.

enum class Cast { children, animals, anybody };

struct Plot {
    std::string_view name;
    Cast who;
    std::string_view cast;
    std::string_view text;
};

const std::vector<Plot> plots = {
    {"lost", Cast::children, "toy color wrong=spot spot junk", R"(
{opening} {hero} had {a color} {toy}[ and took it everywhere| and played with it every day|]. {Day}, [the
{toy} was gone|{hero} could not find the {toy}].

{hero} looked {wrong}, but [the {toy} was not there|{he} only found {a junk}|there was only {a junk}].
{hero} [was sad|began to cry|sat down and cried]. Then {pal} came [to play|by]. "I [lost|cannot find] my
{color} {toy}," said {hero}. "{calm}," said {friend}. "[We will find it|I will help you|Let us look
together]."

[They|{friend}] looked {spot}. There was the {toy}! {hero} had left it there
[the day before|after dinner|the night before].

"{thanks}" said {hero}[ with a big smile| and gave {friend} a hug|]. [They played with the {toy} until it
was dark|{From-then}, {hero} always put the {toy} back in its box|{From-then}, {hero} and {friend} were best
friends].)"},

    {"stuck", Cast::children, "color thing helper", R"(
{opening} {Sunny}, {hero} [took {his} {color} {thing} to the park|was in the park with {his} {color}
{thing}]. {thing.how}.

"[Oh no|Help]!" said {hero}. "My {thing} is stuck!" {He} [jumped up and down|jumped and jumped|shook the
tree|pushed the tree], but the {thing} did not come down.

[Then {helper.first} came by|{Helper.first} saw it all|{Helper.first} heard {him}]. "[Can I help|Do you need
help]?" asked {helper}. "Yes, please," said {hero}. [So|Then] {helper} {helper.way}.

"{thanks}" said {hero}. {He} gave {helper} {helper.gift}. [{hero} was so happy to have the
{thing} back|{hero} went home with the {color} {thing} and a big smile|It is good to have a friend who helps
you].)"},

    {"rescue", Cast::children, "pet", R"(
{opening} {Day}, {hero} [went for a walk with|played outside with|went to the park with] {pal}.
[They|{hero}|{friend}] saw a little {pet} {pet.where}. {pet.trouble}.

"[Poor little {pet}|Look at the poor {pet}]," said {friend}. "[Can we help it|What can we do]?" {hero}
[thought for a while|sat down next to the {pet}]. "[Do not be afraid|We will help you], little {pet}," {he}
said. [Very gently|Very carefully], {hero} {pet.fix}.

{pet.after}. {hero} and {friend} [were so glad|laughed|smiled]. ["You have a kind heart, {hero}," said
{friend}|"You did it, {hero}!" said {friend}|The next day they saw the {pet} again, and it was well|{hero}
told {his} mom about the {pet}, and {his} mom was proud|It feels good to be kind].)"},

    {"share", Cast::anybody, "food food2=food food3=food seat loss", R"(
{opening} {Sunny}, {his} [mom|dad|grandma] gave {him} {a food}. {hero} sat down {seat} to eat it.

Then {pal} came by. {friend} looked [sad|hungry|tired and hungry]. "{ask}?" asked {hero}. "{loss}," said
{friend}.[ "I am so hungry."|]

{hero} [was hungry too|wanted to eat it all], but {friend} was {his} friend. {He} [broke|cut] the {food} in
two. "[Here|This is for you|You can have half]," {he} said. "{thanks}" said {friend}.

They ate {seat} and [talked|laughed|looked at the clouds|told funny stories]. [The next day, {friend} had
{a food3} and gave half of it to {hero}|The {food} was small, but they were both happy|{hero} was glad. The
{food} tasted better with a friend].)"},

    {"honest", Cast::children, "color accident pot elder", R"(
{opening} {Day}, {hero} {accident.did}. {accident.hit} {his} {elder}'s {color} {pot}. Crash! The {pot} fell
to the floor and broke.

{hero} wanted to [hide|run away|say that the cat did it], but {he} knew that [it was wrong|it was not
right]. {He} went to {his} {elder}. "I broke your {pot}," said {hero}. "I am [so|very] sorry."

{His} {elder} [looked at {him}|was quiet for a while|gave {him} a hug]. "[Thank you for telling me|I am glad
that you told me]," said {his} {elder}. "[I am not angry|We can fix it|You are more important than a
{pot}]." Together they [cleaned the floor|fixed the {pot}].

{From-then}, {hero} {accident.rule}[, and {he} always told the truth|].)"},

    {"noise", Cast::children, "elder noise", R"(
{opening} One night, {hero} was in bed. [It was very dark|The moon was bright|The house was quiet]. Then
{he} heard something. "{Noise}!"

{hero} was [afraid|scared]. "[Is it a monster|Who is there]?" {he} asked. "{Noise}!" {hero} [hid under the
blanket|called {his} {elder}, but {his} {elder} was asleep|held {his} toy bear].

But {hero} [wanted to be brave|was brave]. {He} took a [small|little] light and walked [slowly |]to the
{noise.where}. {He} looked[ and looked|]. It was only {noise.source}! {hero} [laughed and laughed|began to
laugh|had to laugh].

{hero} went back to bed. ["There is no monster," {he} said, and soon {he} was asleep|{He} was not afraid
now, and soon {he} was asleep|In the morning, {he} told {his} {elder} about it. "You are very brave," said
{his} {elder}].)"},

    {"rain", Cast::children, "color plan idea", R"(
{opening} {Day}, {hero} and {pal} wanted to {plan}. But [the sky was dark|dark clouds came|the sky turned
gray], and it began to rain.

"Now we cannot {plan}," said {hero}. {He} was [sad|very sad|angry]. But {friend} had an idea. "{calm}," said
{friend}. "We can {idea}!"

So they {idea.past}. {idea.detail}. They [laughed and laughed|had so much fun that they forgot the
rain|played until the rain stopped].

Then [the sun came out|there was a rainbow in the sky]. {hero} [smiled|was happy again]. "[Tomorrow we can
{plan}|This was the best day|A day with rain can be a good day]," {he} said.)"},

    {"learn", Cast::children, "skill", R"(
{opening} {hero} wanted to {skill}[ like the big children| more than anything|, but it was hard].
{skill.fail}.

"I [will never|cannot] {skill}," said {hero}. {He} was [sad|angry|very sad]. "{calm}," said {pal}. "[I could
not do it at first|It takes time]. [You must try again|Try again|I will help you]."

So {hero} tried again [and again|the next day]. {He} [tried every day for a week|tried every morning|did not
give up]. Then, {day}, {hero} {skill.did}! "You did it!" said {friend}[ and gave {him} a hug|].

{hero} was [so|very] proud. [Now {he} knew that you can learn anything if you try|"Thank you for your help,"
{he} said to {friend}|{From-then}, {hero} never said "never" again].)"},

    {"garden", Cast::children, "elder plant", R"(
{opening} {Day}, {his} {elder} gave {him} a seed. "[Plant it|Put it in the garden] and wait,"
said {his} {elder}.

{hero} put the seed in the garden and gave it some water. {He} looked every [day|morning],
but [there was nothing|nothing came up]. "[Why does it not grow|When will it grow]?" {he} asked. "[Good
things take time|Wait and see]," said {his} {elder}.

[The rain came|The sun came out]. {Day}, {hero} saw a tiny green leaf! [It grew and grew|Every day it was
bigger]. At last there was {a plant}. {plant.end}.

{hero} was [so|very] proud. [Now {he} knew that good things take time|{He} had waited a long time, and it
was worth it|"You were right," {he} said to {his} {elder}].)"},

    {"gift", Cast::anybody, "color craft", R"(
{opening} {His} best friend was {a friend.kind} named {friend}. {Day}, it was {friend}'s birthday, but
{hero} had no gift. {He} thought
and thought.

Then {he} had an idea. {He} took {craft.from} and made {a craft}.[ It took all day.|]

"Happy birthday, {friend}!" said {hero}. "[It is not big, but I made it|I made this {craft} for you]."
{friend} looked at the {craft} and [smiled|was quiet for a while|jumped with joy]. "[It is the best gift of
all|I love it|It is so pretty]," said {friend}[.|, "because you made it for me."]

They [danced|sang|played|ate cake] until it was dark. [{hero} went home happy|The best gifts come
from the heart|{friend} kept the {craft} for a long, long time].)"},

    {"heavy", Cast::animals, "load tiny", R"(
{opening} {Day}, {hero} saw {load.where}. {He} pushed and pushed, but the {load} did not move. It was too
heavy.

Then {pal} came by. They pushed together, but the {load} did not move.

Then {a tiny} came by. "[I can help too|Let me help too]," said the {tiny}. "You are too small!" said
{friend}. But they all pushed together. One, two, three! {load.result}!

"[Hooray|We did it]!" said {hero}. ["Thank you, {friend}. Thank you, little {tiny}."|"You are small, but you
are a big help," {friend} said to the {tiny}.|{From-then}, they were all good friends.|Even a small friend
can be a big help.])"},

    {"lost way", Cast::animals, "color lure guide way", R"(
{opening} {Day}, {hero} saw {a color} {lure} and ran after it. {He} ran [over a hill|past the pond] and into
the [dark|deep] forest. Then the {lure} was gone.

{He} did not know the way home.[ It was late.| It was very quiet.|] {He} [sat down|began to cry|was
afraid].

{A guide} [saw {him}|heard {him}|came by]. "{ask}, little {kind}?" asked the {guide}. "[I cannot find my
way home|I am lost]," said {hero}. "[{calm}|Listen to me]," said the {guide}. "Follow the {way}."

{hero} followed the {way}, and [soon|at last] {he} was home. {His} mom gave {him} a big hug. ["I was so
afraid," said {his} mom|"I will never go so far again," said {hero}|Soon {he} was
asleep in {his} warm bed].)"},

    {"new friend", Cast::children, "game food", R"(
{opening} {Day}, a new {friend.kind} came to {his} school. {Friend.his} name was {friend}.

{friend} sat alone [under a tree|by the window|on a bench][ and did not say a word|]. {hero} [was sorry for
{friend}|wanted to be kind]. {He} went to {friend} and said, "[Hello! |]I am {hero}. Do you want to {game}?"

"I do not know how," said {friend}. "[Do not worry|It is all right]," said {hero}. "I will show you." So they
{game.past}. [Soon {friend} began to laugh|At first {friend} was shy, but soon {friend.he} smiled].

The next day, {friend} [gave {hero} {a food}|came to {hero} with a smile]. "You are my first friend here,"
said {friend}. [{hero} was so happy|"And you are my new best friend," said {hero}|{From-then}, they played
together every day].)"},

    {"race", Cast::animals, "goal", R"(
{opening} {hero} could run very fast. {Day}, {hero} and {pal} had a race to the {goal}.

One, two, three, go! {hero} ran [like the wind|as fast as {he} could]. Soon {he} was near the {goal}. Then
{he} heard a cry. {friend} had [fallen down|stepped in a hole] and could not get up.

{hero} [wanted to win|could win the race], but {he} ran back to {friend}. "[But you could win|Go on and
win]," said {friend}.

"A friend is more important than a race," said {hero}. {He} helped {friend} up, and they walked to the
{goal} [side by side|together]. [They were both very happy|"We both won," said {friend}|{From-then}, they
were best friends].)"},
};

// -----------------------------------------------------------------------------------------------------------
// The teller.

// splitmix64 (Steele, Lea, Flood 2014): a few lines, and the same numbers everywhere, unlike the
// distributions of <random>.
struct Dice {
    uint64_t state;

    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }

    // 0 .. n-1. The top 32 bits scaled by n: the bias is below n / 2^32.
    size_t below(size_t n) { return size_t(((next() >> 32) * uint64_t(n)) >> 32); }
};

// The parts of `text` between separators, but not those inside [brackets].
std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    size_t start = 0, depth = 0;
    for (size_t i = 0; i < text.size(); i++) {
        if (text[i] == '[') depth++;
        if (text[i] == ']') depth--;
        if (text[i] != separator || depth > 0) continue;
        parts.push_back(text.substr(start, i - start));
        start = i + 1;
    }
    parts.push_back(text.substr(start));
    return parts;
}

// The index of the bracket that closes the one at `open`.
size_t closing(std::string_view text, size_t open) {
    size_t depth = 0;
    for (size_t i = open; i < text.size(); i++) {
        if (text[i] == '[') depth++;
        if (text[i] == ']' && --depth == 0) return i;
    }
    fail("stories: no ']' closes the '[' in \"%.*s\"", int(text.size()), text.data());
}

template <class Named>
const Named* find(const std::vector<Named>& list, std::string_view name) {
    for (const Named& entry : list)
        if (entry.name == name) return &entry;
    return nullptr;
}

class Teller {
  public:
    explicit Teller(uint64_t seed) : dice{seed} {}

    std::string story() {
        const Plot& plot = plots[dice.below(plots.size())];
        facts.clear();
        drawn.clear();
        introduce(plot.who);
        for (std::string_view part : split(plot.cast, ' ')) {
            const size_t equals = part.find('=');
            if (equals == part.npos)
                draw(part, part);
            else
                draw(part.substr(0, equals), part.substr(equals + 1));
        }
        return expand(plot.text.substr(1)) + "\n\n";  // a text begins with a line break
    }

  private:
    Dice dice;
    std::map<std::string, std::string, std::less<>> facts;  // what {variable} and {variable.column} stand for
    std::vector<std::string_view> drawn;                    // rows that this story has used

    void draw(std::string_view variable, std::string_view table_name) {
        const Table* table = find(tables, table_name);
        if (!table) fail("stories: no table is named '%.*s'", int(table_name.size()), table_name.data());
        std::vector<std::string_view> left;
        for (std::string_view row : table->rows)
            if (std::find(drawn.begin(), drawn.end(), row) == drawn.end()) left.push_back(row);
        if (left.empty()) fail("stories: no row is left in table '%.*s'", int(table_name.size()), table_name.data());
        const std::string_view row = left[dice.below(left.size())];
        drawn.push_back(row);
        const std::vector<std::string_view> columns = split(table->columns, '|'), fields = split(row, '|');
        if (columns.size() != fields.size())
            fail("stories: table '%.*s' has %zu columns, but a row has %zu: \"%.*s\"", int(table_name.size()),
                 table_name.data(), columns.size(), fields.size(), int(row.size()), row.data());
        facts[std::string(variable)] = fields[0];
        for (size_t i = 0; i < fields.size(); i++) {
            facts[std::string(variable) + "." + std::string(columns[i])] = fields[i];
        }
    }

    void introduce(Cast who) {
        const bool animals = who == Cast::animals || (who == Cast::anybody && dice.below(2) == 0);
        const bool hero_is_she = dice.below(2) == 0;
        person("hero", animals, hero_is_she);
        person("friend", animals, !hero_is_she);
        draw("land", animals ? "animal-land" : "child-land");
        for (const char* word : {"he", "his", "him", "kind"}) facts[word] = facts["hero." + std::string(word)];
        facts["pal"] = animals ? "{friend} the {friend.kind}" : "{his} friend {friend}";
    }

    void person(const std::string& variable, bool animal, bool she) {
        draw(variable, animal ? (she ? "she-animal" : "he-animal") : (she ? "girl" : "boy"));
        if (animal)
            draw(variable + ".kind", "animal");
        else
            facts[variable + ".kind"] = she ? "girl" : "boy";
        facts[variable + ".he"] = she ? "she" : "he";
        facts[variable + ".his"] = she ? "her" : "his";
        facts[variable + ".him"] = she ? "her" : "him";
    }

    std::string expand(std::string_view text) {
        std::string out;
        for (size_t i = 0; i < text.size(); i++) {
            if (text[i] == '[') {
                const size_t end = closing(text, i);
                const std::vector<std::string_view> choices = split(text.substr(i + 1, end - i - 1), '|');
                out += expand(choices[dice.below(choices.size())]);
                i = end;
            } else if (text[i] == '{') {
                const size_t end = text.find('}', i);
                if (end == text.npos) fail("stories: no '}' in \"%.*s\"", int(text.size()), text.data());
                out += value(text.substr(i + 1, end - i - 1));
                i = end;
            } else if (text.substr(i, 2) == "\n\n") {
                out += '\n';
                i++;
            } else {
                out += text[i] == '\n' ? ' ' : text[i];
            }
        }
        return out;
    }

    // What stands for {mark}.
    std::string value(std::string_view mark) {
        std::string name(mark), text;
        const bool capital = name[0] >= 'A' && name[0] <= 'Z';
        if (capital) name[0] = char(name[0] - 'A' + 'a');
        const bool article = name.starts_with("a ");
        if (article) name.erase(0, 2);
        if (const auto fact = facts.find(name); fact != facts.end())
            text = expand(fact->second);
        else if (const Phrase* phrase = find(phrases, name))
            text = expand(phrase->text);
        else
            fail("stories: nothing is named {%.*s}", int(mark.size()), mark.data());
        if (article) text = (std::string_view("aeiou").find(text[0]) != std::string_view::npos ? "an " : "a ") + text;
        if (capital && text[0] >= 'a' && text[0] <= 'z') text[0] = char(text[0] - 'a' + 'A');
        return text;
    }
};

}  // namespace

std::string story_corpus(size_t bytes, uint64_t seed) {
    Teller teller(seed);
    std::string text;
    text.reserve(bytes + 1024);
    while (text.size() < bytes) text += teller.story();
    return text;
}

std::vector<std::string> story_prompts() {
    return {
        "Once upon a time, there was a little girl named Lily.",
        "Once there was a clever fox named Rusty.",
        "Once upon a time, a kind boy named Ben lived near the sea.",
        "Once upon a time, a small rabbit named Hazel lived in a green forest.",
        "Tom was a happy boy who lived on a farm. One day, Tom",
        "Once upon a time, there was a funny bear named Poppy. One sunny morning, her mom gave her",
    };
}

}  // namespace tapernorm
